"""The ranks of one attempt as local processes. Standard library only.

A step is started, told to stop, and waited for by events: the kernel's SIGCHLD wakes the supervisor.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AFTER_FAILURE_S = 5.0  # for the other ranks to print their own errors before they are killed
AFTER_STOP_S = 120.0  # from the first rank that left as asked to the last


@dataclass(frozen=True)
class StepSpec:
    """What every rank of a step runs. `environment` comes on top of this process's own."""

    command: list[str]
    directory: Path
    environment: dict[str, str]
    world_size: int
    threads_per_rank: int
    log: Callable[[int], Path]  # rank → file


@dataclass(frozen=True)
class StepEnd:
    """exit_codes by rank, negative for a signal; first_failed: the rank that went first with an error of its own."""

    exit_codes: list[int]
    first_failed: int | None


class LocalStep:
    """One process per rank on this machine, each a process group of its own."""

    def __init__(self, spec: StepSpec, stop_code: int) -> None:
        self._stop_code = stop_code
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deadline: float | None = None
        port = str(_free_port())
        for rank in range(spec.world_size):
            with spec.log(rank).open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        spec.command,
                        cwd=spec.directory,
                        env={**os.environ, **spec.environment, **_rank_environment(rank, spec, port)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._first_failed: int | None = None

    def poll(self) -> StepEnd | None:
        """The end, once all ranks have left; kills what outlives its deadline. Call on every wake-up."""
        codes = [process.poll() for process in self._processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0, self._stop_code) and self._first_failed is None:
                self._first_failed = rank
                self._shorten(AFTER_FAILURE_S)
            elif code is not None:
                self._shorten(AFTER_STOP_S)
        if None not in codes:
            return StepEnd([code for code in codes if code is not None], self._first_failed)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if self._first_failed is None:
                self._first_failed = next(rank for rank, code in enumerate(codes) if code is None)
            self.kill()
        return None

    def seconds_to_deadline(self) -> float | None:
        """How long `poll` may wait to be called again; None: until a rank ends."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def ask_to_stop(self) -> None:
        """SIGTERM to every rank: save at the next step boundary and leave."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every rank and all that it started."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self._deadline = None

    def _shorten(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)


def _rank_environment(rank: int, spec: StepSpec, port: str) -> dict[str, str]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_WORLD_SIZE": str(spec.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUNBUFFERED": "1",
    }
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(spec.threads_per_rank)
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
