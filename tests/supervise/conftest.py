"""Steps and runs whose ranks are programs of ours; none of their processes outlives its test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs import freeze
from hpc_llm.supervise import srun_step
from hpc_llm.supervise.local_step import LocalStep
from hpc_llm.supervise.srun_step import SrunStep
from tests.configs import make_config, planned
from tests.supervise.ranks import DONE, PROGRAM, STOPPED, Pipe, Run, spec


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    made = Pipe(tmp_path / "pipe")
    yield made
    made.close()


@pytest.fixture
def wake() -> Iterator[int]:
    """The end of a pipe into which the kernel's SIGCHLD writes, as in the supervisor."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    fd_before = signal.set_wakeup_fd(writer)
    yield reader
    signal.set_wakeup_fd(fd_before)
    signal.signal(signal.SIGCHLD, before)
    os.close(reader)
    os.close(writer)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Starts steps; none of their processes outlives the test."""
    running: list[LocalStep] = []

    def start(program: str, world_size: int = 1, **environment: str) -> LocalStep:
        running.append(
            LocalStep(spec(tmp_path, program, world_size, **environment), STOPPED, 12345)
        )
        return running[-1]

    yield start
    for step in running:
        step.kill()


SRUN = """#!/bin/sh
echo x >>"$FOLDER/tries"
[ "$(wc -l <"$FOLDER/tries")" -gt "$REFUSED" ] && exit 0
echo "srun: error: Unable to create step for job 1: $WORDS"
exit 1
"""


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps of an srun that gets none for the first `refused` times."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setattr(srun_step, "AGAIN_S", 0.05)

    def start(
        refused: int, words: str = "Requested nodes are busy", is_first: bool = True
    ) -> SrunStep:
        monkeypatch.setenv("REFUSED", str(refused))
        monkeypatch.setenv("WORDS", words)
        return SrunStep(
            spec(tmp_path, ""), STOPPED, [], {}, tmp_path / "log", lambda name: True, is_first
        )

    return start


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """Makes a run of `world_size` ranks whose python is `program`."""
    made: list[Run] = []

    def make(program: str, world_size: int = 1, *words: str) -> Run:
        python = tmp_path / "python"
        code = (PROGRAM + DONE + program).replace("'", "'\\''")
        python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S -c '{code}' \"$@\"\n")
        python.chmod(0o755)
        config = make_config(
            f"run.root={tmp_path}", "run.name=first", f"cluster.python={python}", *words
        )
        config = replace(config, cluster=replace(config.cluster, gpus_per_node=world_size))
        made.append(Run(freeze.freeze(planned(config)), []))
        return made[-1]

    yield make
    for process in (process for each in made for process in each.running):
        if process.poll() is None:
            process.kill()
            process.communicate()
