"""Ranks as processes on this machine. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from hpc_llm.recovery.causes import origin
from hpc_llm.supervise.steps import (
    AFTER_ABORT_S,
    AFTER_FAILURE_S,
    AFTER_STOP_S,
    STOP_SIGNAL,
    StepEnd,
    StepSpec,
    has_failed,
    start_process,
)


class LocalStep:
    """One process per rank on this machine, each in its own process group."""

    def __init__(self, spec: StepSpec, stop_code: int, port: int) -> None:
        self._stop_code = stop_code
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deadline: float | None = None
        self._failed: dict[int, int] = {}  # exit code by rank, in the order they were noticed
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
                process = start_process(spec, spec.command, place, spec.log(rank))
            except OSError:  # the others would wait for this one
                self.kill()
                raise
            self._processes.append(process)

    def poll(self) -> StepEnd | None:
        codes = [process.poll() for process in self._processes]
        exited = {rank: code for rank, code in enumerate(codes) if code is not None}
        for rank, code in exited.items():
            self._note_exit(rank, code)
        if len(exited) == len(codes):
            self.kill()  # what ranks have started and left behind
            return StepEnd(exited, origin(self._failed))
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if not self._failed:
                self._failed[codes.index(None)] = -signal.SIGKILL
            self.kill()
        return None

    def _note_exit(self, rank: int, code: int) -> None:
        if not has_failed(code, self._stop_code):
            self._shorten(AFTER_STOP_S)
        elif not self._failed or not self._killed:
            self._failed.setdefault(rank, code)
            self._shorten(AFTER_FAILURE_S)

    def seconds_to_deadline(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

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
        """End every rank and what it has started: a group lives on after the rank that made it."""
        self._killed = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._deadline = None

    def _shorten(self, seconds: float) -> None:
        """Set the deadline, unless there is an earlier one."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline = deadline
