"""Ranks as tiny programs: `$RANK` tells them apart; `leave`, `wait`, `tell` are what they can do.

They are real processes, started, watched, asked to stop and killed. Every wait is for an event.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.supervise.steps import STOP_SIGNAL, Step, StepEnd, StepSpec

STOPPED = int(ExitCode.STOPPED)
LIMIT_S = 30.0  # a wait for an event that takes longer has failed

PROGRAM = f"""
import os, signal, sys
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ.get("HPC_LLM_ATTEMPT", "0"))
ASKED = signal.Signals({int(STOP_SIGNAL)})
signal.pthread_sigmask(signal.SIG_BLOCK, [ASKED, signal.SIGTERM])

def tell(word):
    with open(os.environ["PIPE"], "w") as pipe:
        pipe.write(f"{{RANK}} {{word}}\\n")

def wait(*numbers):
    return signal.sigwait(numbers or [ASKED])

def leave(code):
    sys.exit(code)

def hang():
    while True:
        signal.pause()
"""


@dataclass
class Pipe:
    """What ranks tell the test, line by line."""

    path: Path

    def __post_init__(self) -> None:
        os.mkfifo(self.path)
        self._file = os.open(self.path, os.O_RDWR)
        self._read = b""

    def lines(self, number: int) -> list[str]:
        """The next `number` lines, sorted; waits for them."""
        while self._read.count(b"\n") < number:
            assert select.select([self._file], [], [], LIMIT_S)[0], f"told so far: {self._read!r}"
            self._read += os.read(self._file, 4096)
        *lines, self._read = self._read.split(b"\n", number)
        return sorted(line.decode() for line in lines)

    def close(self) -> None:
        os.close(self._file)


def spec(folder: Path, program: str, world_size: int = 1, **environment: str) -> StepSpec:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM + program]
    environment = {"PIPE": str(folder / "pipe"), **environment}
    return StepSpec(
        command, folder, environment, world_size, 3, lambda rank: folder / f"{rank}.log"
    )


def finished(step: Step, wake: int) -> StepEnd:
    """The end of a step, waited for as the supervisor does: by SIGCHLD, and by the step's own
    deadline.
    """
    while (end := step.poll()) is None:
        seconds = step.seconds_to_deadline()
        ready, _, _ = select.select([wake], [], [], LIMIT_S if seconds is None else seconds)
        assert ready or seconds is not None, "no rank ended"
        if ready:
            os.read(wake, 4096)
    return end


def until_one_left(step: Step, wake: int) -> None:
    """Until the step has seen that a rank has left, and has set the others a deadline."""
    while step.poll() is None and step.seconds_to_deadline() is None:
        assert select.select([wake], [], [], LIMIT_S)[0]
        os.read(wake, 4096)


def wait_for_end(pid_file: int) -> None:
    assert select.select([pid_file], [], [], LIMIT_S)[0], "the process lives on"
    os.close(pid_file)


DONE = """
def done():
    folder = sys.argv[3] + "/checkpoints/step-99999999"  # of the last step or a later one
    os.makedirs(folder, exist_ok=True)
    open(folder + "/manifest.json", "a").close()
    leave(0)
"""


@dataclass
class Run:
    """A frozen run whose ranks are a program of ours, supervised by a real process."""

    layout: RunLayout
    running: list[subprocess.Popen[str]]

    def supervise(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hpc_llm.supervise", str(self.layout.path)]
        hidden = ("HPC_LLM_PARENT", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["PIPE"] = str(self.layout.path.parent / "pipe")
        self.running.append(
            subprocess.Popen(
                command,
                cwd=self.layout.code,
                env=environment,
                text=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        return self.running[-1]

    def status(self) -> int:
        """Supervised to its end; the exit status, or the complaint that a traceback is."""
        process = self.supervise()
        _, complaints = process.communicate(timeout=LIMIT_S)
        assert "Traceback" not in complaints, complaints
        return process.returncode

    def facts(self, event: str) -> list[dict[str, Any]]:
        return [found.facts for found in ledger.read(self.layout.ledger) if found.event == event]

    @property
    def causes(self) -> list[str]:
        return [facts["cause"] for facts in self.facts("ended")]
