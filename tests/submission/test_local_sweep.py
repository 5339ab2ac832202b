"""A sweep on this machine: so many at once, failures that stop nobody, a signal that stops all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_llm.runs.layout import RunLayout
from hpc_llm.submission.local_sweep import Supervisors

# A supervisor's part. Opening a pipe by its name waits for the other side: two that run one after
# the other never meet.
MEETS = "import signal, sys; signal.alarm(60); open(sys.argv[1], sys.argv[2]).close()"


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def runs(root: Path, count: int) -> list[RunLayout]:
    return [RunLayout(root / f"run-{number}") for number in range(count)]


def python(program: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *words])


def test_two_at_once_meet_each_other(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    sides = iter("rw")
    os.mkfifo(pipe)
    assert (
        Supervisors(runs(tmp_path, 2), 2, lambda _: python(MEETS, str(pipe), next(sides))).work()
        == 0
    )


def test_there_are_never_more_at_once_than_asked_for(tmp_path: Path) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start(_: RunLayout) -> subprocess.Popen[bytes]:
        assert sum(child.poll() is None for child in children) < 2
        children.append(python("import time; time.sleep(0.1)"))
        return children[-1]

    assert Supervisors(runs(tmp_path, 5), 2, start).work() == 0
    assert len(children) == 5


def test_one_that_fails_stops_no_other_and_shows_in_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = iter([0, 1, 0])
    assert (
        Supervisors(
            runs(tmp_path, 3), 1, lambda _: python(f"raise SystemExit({next(statuses)})")
        ).work()
        == 1
    )
    said = capsys.readouterr().out
    assert "run-1: failed" in said
    assert "run-2: complete" in said


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
    ],
)
def test_a_stop_signal_reaches_those_that_run_and_lets_none_begin(
    tmp_path: Path, typed: int, passed_on: int
) -> None:
    children = []

    def start(_: RunLayout) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(["sleep", "infinity"]))
        if len(children) == 2:
            os.kill(os.getpid(), typed)
        return children[-1]

    assert Supervisors(runs(tmp_path, 5), 2, start).work() == 130
    assert len(children) == 2
    assert all(child.returncode == -passed_on for child in children)
