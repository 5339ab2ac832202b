"""The real `prepare`, killed at random moments, ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs.machine import REPOSITORY
from tests.waiting import until

KILLS = 20
NUM_SOURCES = 10


def words(corpus: Path, out: Path) -> list[str]:
    """Several sources, so that every stage has several jobs."""
    files = sorted(corpus.rglob("*.py"))[: 2 * NUM_SOURCES]
    for number, path in enumerate(files):
        folder = out.parent / "sources" / f"s{number % NUM_SOURCES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    sources = [
        f"data.sources.s{number}.path={out.parent}/sources/s{number}"
        for number in range(NUM_SOURCES)
    ]
    return [
        "data=files",
        *sources,
        "data.heldout_fraction=0.3",
        "data.workers=2",
        "model.vocab_size=512",
    ]


def start(given: list[str], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpc_llm.prepare", *given, f"data.out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(out: Path) -> dict[str, int]:
    """The files of the work so far, with when they were made, but for those being written."""
    found = {}
    for path in out.parent.glob(f"{out.name}.partial-*/**/[!.]*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                found[str(path)] = path.stat().st_mtime_ns
    return found


def kill_once_there_are(count: int, given: list[str], out: Path) -> None:
    process = start(given, out)
    until(
        lambda: len(results(out)) >= count or process.poll() is not None,
        60,
        f"{count} results",
        poll_s=0.0005,
    )
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the output ends when the last worker has: none outlives it
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on_and_the_bytes_are_the_same(
    corpus: Path, tmp_path: Path, content: Callable[[Path], dict[str, bytes]]
) -> None:
    given = words(corpus, tmp_path / "whole")
    process = start(given, tmp_path / "whole")
    assert process.wait(120) == 0, process.communicate()[0]
    process.communicate()

    out = tmp_path / "killed"
    most = (
        3 + NUM_SOURCES * 3 + 2 * 2 * NUM_SOURCES
    )  # plan, decided, tokenizer; scans, tokens; shards with their notes
    before: dict[str, int] = {}
    for moment in sorted(random.Random(17).sample(range(1, most), KILLS)):
        kill_once_there_are(moment, given, out)
        assert not out.exists()
        kept = results(out)
        assert all(kept.get(path) == made for path, made in before.items()), (
            "work that was done is not done again"
        )
        before = {
            path: made for path, made in kept.items() if path.endswith((".npz", ".model", ".json"))
        }
    assert start(given, out).wait(120) == 0
    assert content(out) == content(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial-*"))
