"""TensorBoard is served to nobody but the user, and the line to reach it is printed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hpc_llm.status import __main__
from hpc_llm.trackers import page


def test_it_binds_the_loopback_on_a_port_that_is_free_and_says_how_to_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: served.append(words))
    __main__.main([str(tmp_path), "--tensorboard"])
    (words,) = served
    assert "--host=127.0.0.1" in words
    assert f"--logdir={tmp_path}" in words
    port = next(word.removeprefix("--port=") for word in words if word.startswith("--port="))
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in capsys.readouterr().out
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(port)))


def test_two_that_are_open_have_different_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", page.free_port()))
        assert page.free_port() != taken.getsockname()[1]
