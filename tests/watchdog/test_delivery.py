"""What a user's command or webhook gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hpc_llm.watchdog import delivery

EVENT = {"event": "failed", "name": "one", "why": "„x“; $(rm -rf /)"}


@pytest.fixture
def hook() -> Iterator[tuple[str, list[object], list[int]]]:
    """A web server's address, what it was sent, and the status that it answers with."""
    got: list[object] = []
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-token", got, status
    server.shutdown()
    server.server_close()


def test_a_command_finds_the_event_on_its_standard_input_and_no_shell_sees_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "tell").write_text(f'#!/bin/bash\ncd "{tmp_path}"\necho "$1" >words; cat >said\n')
    (tmp_path / "tell").chmod(0o755)
    assert delivery.deliver([str(tmp_path / "tell"), "a b; c"], EVENT) is None
    assert json.loads((tmp_path / "said").read_text()) == EVENT
    assert (tmp_path / "words").read_text() == "a b; c\n"


def test_a_command_may_say_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "tell").write_text("#!/bin/bash\ncat >/dev/null; printf 'f\\374r user\\n'\n")
    (tmp_path / "tell").chmod(0o755)
    assert delivery.deliver([str(tmp_path / "tell")], EVENT) is None


@pytest.mark.parametrize("words", [["false"], ["/no/such/command"]])
def test_a_command_that_fails_is_named(words: list[str]) -> None:
    assert words[0] in str(delivery.deliver(words, EVENT))


def test_a_command_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.2)
    assert "timed out" in str(delivery.deliver(["sleep", "60"], EVENT))


def test_a_webhook_gets_json(hook: tuple[str, list[object], list[int]]) -> None:
    url, got, _ = hook
    assert delivery.deliver([url], EVENT) is None
    assert got == [EVENT]


def test_the_address_may_lie_in_the_environment(
    hook: tuple[str, list[object], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, got, _ = hook
    assert delivery.deliver(["$MY_HOOK"], EVENT) == "$MY_HOOK is not set"
    monkeypatch.setenv("MY_HOOK", url)
    assert delivery.deliver(["$MY_HOOK"], EVENT) is None
    assert got == [EVENT]


def test_a_webhook_that_refuses_is_named_without_its_secret(
    hook: tuple[str, list[object], list[int]],
) -> None:
    url, _, status = hook
    status[0] = 500
    said = str(delivery.deliver([url], EVENT))
    assert "127.0.0.1" in said and "500" in said
    assert "secret-token" not in said


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"]
)
def test_nothing_is_sent_in_the_clear(url: str) -> None:
    assert "https" in str(delivery.deliver([url], EVENT))
