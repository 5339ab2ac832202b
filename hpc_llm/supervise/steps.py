"""The ranks of one attempt: local processes, or one srun step. Standard library only.

A step is started, told to stop, and waited for by events: the kernel's SIGCHLD wakes the
supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpc_llm.recovery.causes import origin
from hpc_llm.runs.attempts import Fenced
from hpc_llm.runs.orders import ExitCode
from hpc_llm.slurm import srun

AFTER_FAILURE_S = 5.0  # for the other ranks to print their own errors before they are killed
AFTER_STOP_S = 120.0  # from the first rank that exits as asked to the last
AGAIN_S = 5.0
PATIENCE_S = 300.0  # between tries to start a step that Slurm does not start, and for all tries
AFTER_ABORT_S = 5.0  # for hung ranks to write their stacks
STOP_SIGNAL = (
    signal.SIGUSR2
)  # to ranks: save and exit. SIGTERM is Slurm's: save and wait to be killed


@dataclass(frozen=True)
class StepSpec:
    """What every rank of a step runs. `environment` is added to this process's own."""

    command: list[str]
    directory: Path
    environment: dict[str, str]
    world_size: int
    threads_per_rank: int
    log: Callable[[int], Path]  # rank → file


@dataclass(frozen=True)
class StepEnd:
    """exit_codes by rank as far as known, negative for a signal; first_failed: the rank that failed
    first.

    lost_nodes: those that Slurm lost during the step.
    """

    exit_codes: dict[int, int]
    first_failed: int | None
    lost_nodes: tuple[str, ...] = ()


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
        """Make every rank write its stack, by faulthandler, and die; a stopped rank is woken for
        it.
        """

    def kill(self) -> None:
        """End every rank at once."""


class LocalStep:
    """One process per rank on this machine, each in its own process group."""

    def __init__(self, spec: StepSpec, stop_code: int, port: int) -> None:
        self._stop_code = stop_code
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deadline: float | None = None
        self._failed: dict[
            int, int
        ] = {}  # exit code by rank, in the order in which they were noticed
        self._killed = False
        for rank in range(spec.world_size):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(spec.world_size),
                "LOCAL_WORLD_SIZE": str(spec.world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            try:
                self._processes.append(_start(spec, spec.command, place, spec.log(rank)))
            except OSError:  # the others would wait for this one
                self.kill()
                raise

    def poll(self) -> StepEnd | None:
        codes = [process.poll() for process in self._processes]
        for rank, code in enumerate(codes):
            if code is None:
                continue
            if not _failed(code, self._stop_code):
                self._shorten(AFTER_STOP_S)
            elif not self._failed or not self._killed:
                self._failed.setdefault(rank, code)
                self._shorten(AFTER_FAILURE_S)
        if None not in codes:
            self.kill()  # what ranks have started and left behind
            return StepEnd(
                {rank: code for rank, code in enumerate(codes) if code is not None},
                origin(self._failed),
            )
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if not self._failed:
                self._failed[codes.index(None)] = -signal.SIGKILL
            self.kill()
        return None

    def seconds_to_deadline(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def files(self) -> list[int]:
        return []

    def ask_to_stop(self) -> None:
        self._signal(STOP_SIGNAL)

    def abort(self) -> None:
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)
        self._shorten(AFTER_ABORT_S)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        self._killed = True
        for process in (
            self._processes
        ):  # of those that have left too: their group lives while what they started does
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._deadline = None

    def _shorten(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)


class SrunStep:
    """One task per GPU over the allocation's nodes, started by srun, which ends all tasks when one
    fails.

    When srun ends a step, it waits KillWait (30 s) for ranks that are busy saving or stuck;
    `signal_tasks`, which sends a signal by name to all tasks and says whether Slurm accepted it,
    shortens that to AFTER_FAILURE_S. It raises Fenced where the run is another attempt's.

    An srun that got no step (slurmctld is down, or has not noticed that the last step is over) is
    restarted for PATIENCE_S: the run itself has not failed.
    """

    def __init__(
        self,
        spec: StepSpec,
        stop_code: int,
        options: list[str],
        place: dict[str, str],
        log: Path,
        signal_tasks: Callable[[str], bool],
    ) -> None:
        self._stop_code = stop_code
        self._world_size = spec.world_size
        self._signal_tasks = signal_tasks
        self._log = log
        self._said = b""
        self._deadline: float | None = None
        self._start = lambda: _start(spec, ["srun", *options, "--", *spec.command], place, None)
        self._begun = time.monotonic()
        self._asked = False
        self._again_at: float | None = None
        self._run()

    def _run(self) -> None:
        self._process = self._start()
        self._again_at = None
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._open = True
        os.set_blocking(self._output, False)

    def poll(self) -> StepEnd | None:
        if self._again_at is not None:
            return self._between_two_tries()
        code = self._process.poll()
        self._take_output()
        text = self._said.decode(errors="replace")
        exits = rank_exits(text)
        if code is None:
            # Not for a SIGTERM: in a preemption's grace the job, killed by us, is not requeued
            # (seen on Slurm 22.05).
            failed = [
                number
                for _, number in exits
                if _failed(number, self._stop_code) and number != -signal.SIGTERM
            ]
            if failed and self._deadline is None:
                self._deadline = time.monotonic() + AFTER_FAILURE_S
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.kill()
            return None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._open = False
        no_step = code != 0 and srun.refused(text) and not exits and not self._asked
        if no_step and time.monotonic() - self._begun < PATIENCE_S:
            self._said = b""
            self._deadline = None
            self._again_at = time.monotonic() + AGAIN_S
            return self._between_two_tries()
        return srun_end(text, code, self._world_size, self._stop_code)

    def _between_two_tries(self) -> StepEnd | None:
        assert self._again_at is not None
        if self._asked:
            return StepEnd({0: self._stop_code}, None)
        if time.monotonic() >= self._again_at:
            self._run()
        return None

    def seconds_to_deadline(self) -> float | None:
        until = [one for one in (self._deadline, self._again_at) if one is not None]
        return max(0.0, min(until) - time.monotonic()) if until else None

    def files(self) -> list[int]:
        return [self._output] if self._open else []

    def ask_to_stop(self) -> None:
        self._asked = True
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNAL)  # srun forwards it to every task

    def abort(self) -> None:
        self._asked = True
        with contextlib.suppress(Fenced):
            self._signal_tasks("ABRT")
            self._signal_tasks("CONT")
        self._deadline = time.monotonic() + AFTER_ABORT_S

    def kill(self) -> None:
        """Kill through Slurm, since tasks outlive an srun that is killed. Repeated until they are
        gone.

        Behind the fence srun alone: its tasks end with the job of this supervisor, if they are
        still Slurm's.
        """
        self._asked = True
        self._deadline = time.monotonic() + AFTER_FAILURE_S
        if self._process.poll() is not None:
            return
        try:
            self._signal_tasks("KILL")
        except Fenced:
            self._process.kill()

    def _take_output(self) -> None:
        """Read srun's new output, for the log and for `poll`."""
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self._output, 65536):
                self._said += said
                with contextlib.suppress(OSError), self._log.open("ab") as file:
                    file.write(said)
            self._open = False


def never_started(spec: StepSpec, error: OSError) -> StepEnd:
    """The end of a step whose ranks could not be started, with the reason where rank 0 would have
    said it.

    A command that is no program is a matter of the configuration; too many processes or no free
    port may pass.
    """
    no_program = error.filename == spec.command[0] and error.errno in _NO_PROGRAM
    why = (
        f"cluster.python or cluster.wrapper: {error.filename}: {error.strerror}"
        if no_program
        else str(error)
    )
    with contextlib.suppress(OSError), spec.log(0).open("a") as file:
        file.write(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 rank 0 ERROR could not be started: {why}\n"
        )
    return StepEnd({0: int(ExitCode.CONFIG_ERROR if no_program else ExitCode.CRASHED)}, 0)


_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC)
_ENDED_BY_SLURM = (
    -signal.SIGKILL,
    -signal.SIGTERM,
)  # what --kill-on-bad-exit does to the ranks after the first


def srun_end(text: str, code: int, world_size: int, stop_code: int) -> StepEnd:
    """How a step ended whose srun printed `text` and exited with `code`.

    An srun that lost a node with all its ranks can exit with 0 (seen on Slurm 22.05): that says
    nothing about them. Ranks that die of SIGTERM before all others have not failed: it is Slurm's
    word for the end of the job, and once they train they listen to it.
    """
    lost = srun.lost_nodes(text)
    if code == 0 and not lost:
        return StepEnd(dict.fromkeys(range(world_size), 0), None)
    exits = rank_exits(text)
    codes: dict[int, int] = {}
    for rank, number in exits or [(0, code or int(ExitCode.CRASHED))]:
        codes.setdefault(rank, number)  # the first report on a rank counts
    first, *others = codes.items()
    if not _failed(first[1], stop_code):
        return StepEnd(codes, None, lost)
    of_their_own = [
        one for one in others if one[1] not in _ENDED_BY_SLURM and _failed(one[1], stop_code)
    ]
    failed = origin(dict([first, *of_their_own]))
    return StepEnd(
        codes, None if failed is not None and codes[failed] == -signal.SIGTERM else failed, lost
    )


def rank_exits(text: str) -> list[tuple[int, int]]:
    """(rank, exit code) in the order in which srun reported them; negative for a signal."""
    return [
        (end.rank, int(ExitCode.OUT_OF_MEMORY) if end.code is None else end.code)
        for end in srun.rank_exits(text)
    ]


def _failed(code: int, stop_code: int) -> bool:
    """Whether a rank ended neither done nor as asked; one asked to stop before it handles the
    signal dies of it.
    """
    return code not in (0, stop_code, -STOP_SIGNAL)


def _start(
    spec: StepSpec, command: list[str], place: dict[str, str], log: Path | None
) -> subprocess.Popen[bytes]:
    """A process whose output goes to `log`, or to a pipe."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(spec.threads_per_rank))
    with log.open("ab") if log is not None else contextlib.nullcontext(subprocess.PIPE) as file:
        return subprocess.Popen(
            command,
            cwd=spec.directory,
            env={**os.environ, **threads, "PYTHONUNBUFFERED": "1", **spec.environment, **place},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
