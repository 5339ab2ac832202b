"""The ranks of one attempt as the supervisor sees them: a step that is started, stopped, watched.

It waits for events: the kernel's SIGCHLD wakes the supervisor. See local_step and srun_step.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpc_llm.runs.orders import ExitCode

AFTER_FAILURE_S = 5.0  # for the other ranks to print their own errors before they are killed
AFTER_STOP_S = 120.0  # from the first rank that exits as asked to the last
AFTER_ABORT_S = 5.0  # for hung ranks to write their stacks
# To ranks: save and exit. SIGTERM is Slurm's: save and wait to be killed.
STOP_SIGNAL = signal.SIGUSR2
_THREAD_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC)


@dataclass(frozen=True)
class StepSpec:
    """What every rank of a step runs. `environment` is added to this process's own.

    threads_per_rank: for OpenMP and MKL; None leaves it to them.
    """

    command: list[str]
    directory: Path
    environment: dict[str, str]
    world_size: int
    threads_per_rank: int | None
    log: Callable[[int], Path]  # rank → file


@dataclass(frozen=True)
class StepEnd:
    """How the ranks of a step ended.

    exit_codes: by rank as far as known, negative for a signal. first_failed: the rank that failed
    first. lost_nodes: those that Slurm lost during the step. said: what the launcher says of itself
    where no rank has ended; for_good: whether it would say the same again. cancelled_for: why Slurm
    ended the step, in its words.
    """

    exit_codes: dict[int, int]
    first_failed: int | None
    lost_nodes: tuple[str, ...] = ()
    said: str = ""
    for_good: bool = False
    cancelled_for: str | None = None


class Step(Protocol):
    """Running ranks. `poll` is called on every wake-up and after `seconds_to_deadline`."""

    def poll(self) -> StepEnd | None:
        """The end, once all ranks have exited; kills ranks that outlive their deadline."""

    def seconds_to_deadline(self) -> float | None:
        """How long to wait at most before the next `poll`; None: until a process ends."""

    def files(self) -> list[int]:
        """Descriptors that become readable when `poll` has something to look at."""

    def ask_to_stop(self) -> None:
        """Ask every rank to save at the next step boundary and exit."""

    def abort(self) -> None:
        """Make every rank, also a stopped one, write its stack by faulthandler and die."""

    def kill(self) -> None:
        """End every rank at once."""


def has_failed(code: int, stop_code: int) -> bool:
    """Whether a rank ended neither done nor as asked.

    One that is asked to stop before it handles the signal dies of it.
    """
    return code not in (0, stop_code, -STOP_SIGNAL)


def failed_start(spec: StepSpec, error: OSError) -> StepEnd:
    """The end of a step whose ranks could not be started.

    The reason goes where rank 0 would have logged it. A command that is no program is a mistake in
    the configuration; too many processes or no free port may pass.
    """
    why = str(error)
    code = ExitCode.CRASHED
    if error.filename == spec.command[0] and error.errno in _NO_PROGRAM:
        why = f"cluster.python or cluster.wrapper: {error.filename}: {error.strerror}"
        code = ExitCode.CONFIG_ERROR
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError), spec.log(0).open("a") as file:
        file.write(f"{now},000 rank 0 ERROR could not be started: {why}\n")
    return StepEnd({0: int(code)}, 0)


def start_process(
    spec: StepSpec,
    command: list[str],
    place: dict[str, str],
    log: Path | None,
    inherited: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """A process whose output goes to `log`, or to a pipe.

    Its environment is the `inherited` one, with the step's own and `place`.
    """
    threads = {}
    if spec.threads_per_rank is not None:
        threads = dict.fromkeys(_THREAD_NUMBERS, str(spec.threads_per_rank))
    with contextlib.ExitStack() as stack:
        output = subprocess.PIPE if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            command,
            cwd=spec.directory,
            env={**inherited, **threads, "PYTHONUNBUFFERED": "1", **spec.environment, **place},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
