"""Where a supervisor runs its ranks: on this machine, or in a Slurm allocation (slurm_place).

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.runs.orders import ExitCode
from hpc_llm.supervise.local_step import LocalStep
from hpc_llm.supervise.steps import Step, StepSpec

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10000
_HIGHEST_PORT = 32768
STACKS_TIMEOUT_S = 60.0


class Place(ABC):
    """Knows how ranks are started, what a signal means, and how to go on when its time is up.

    The defaults are those of a place that nobody else looks after, and that lasts for ever.
    """

    exclusive = True  # whether a lock on the run directory tells a live supervisor from a dead one
    parental = True  # whether ranks are children of this process and die with it
    outlives_nodes = False  # whether it survives the loss of a node, because it has spare nodes
    restarts = 0  # how often Slurm has started this very job before

    @property
    def hosts(self) -> Sequence[str]:
        """Names of the nodes with ranks on them, in the order of ranks; none for this machine."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What the ledger records about it."""
        return {"host": os.uname().nodename, "pid": os.getpid()}

    @abstractmethod
    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        """Start the ranks of the fence's attempt; `log` gets the launcher's own output."""

    @abstractmethod
    def dump_stacks(self, run_dir: Path, output: Path) -> None:
        """Write where all ranks are stuck, if py-spy is installed; takes seconds, never fails."""

    def cpus_per_rank(self, ranks_per_node: int) -> int | None:
        """CPUs of each of so many ranks on a node; None if that is not known."""
        return max(1, len(os.sched_getaffinity(0)) // ranks_per_node)

    def enough_without(self, nodes: Collection[str]) -> bool:
        """Whether its remaining nodes suffice without these."""
        return False

    def leave_out(self, nodes: Collection[str]) -> None:
        """Start no more ranks on these nodes; spare nodes replace them."""
        return

    def is_final_signal(self, number: int) -> bool:
        """Whether signal `number` says that the place itself ends: save, exit, do not restart."""
        return False

    def got_final_signal(self, signals: Collection[int]) -> bool:
        """Whether one of `signals` is such a signal."""
        return any(self.is_final_signal(number) for number in signals)

    def time_is_up(self, signals: Collection[int]) -> bool:
        """Whether `signals` say that the time limit is near; the job can be requeued after that."""
        return False

    def is_ending(self) -> bool | None:
        """Whether the place is being taken away; None: unknown.

        A process that exits before that ends the job for good.
        """
        return False

    def missing_hosts(self) -> tuple[str, ...]:
        """Nodes with ranks on them that the place has no more."""
        return ()

    def requeues_who_leaves(self) -> bool:
        """Whether a preemption's grace time runs, and who leaves within it is requeued at once."""
        return False

    def requeue(self, fence: Fence) -> str | None:
        """Have the run restarted once the ranks have saved and exited; how, or None.

        Not where a newer attempt than the fence's exists.
        """
        return None

    def hand_to_successor(self, run: RunLayout, book: Ledger) -> bool:
        """Whether another place, without the bad nodes, takes over when this one ends."""
        return False

    def finished(self, run: RunLayout) -> None:
        """The run is complete: no job needs to wait for the end of this place any more."""
        return


class LocalPlace(Place):
    """Processes on this machine, started by a user who waits for them."""

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        return LocalStep(spec, ExitCode.STOPPED, pick_port(f"{log}/{os.getpid()}"))

    def dump_stacks(self, run_dir: Path, output: Path) -> None:
        run_stacks([], run_dir, output)


def run_stacks(
    launcher: list[str], run_dir: Path, output: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Append the stacks of the run's ranks to `output`; `launcher` starts that on their nodes.

    Uses this interpreter on the bare node: from there py-spy sees into containers, but from inside
    not out.
    """
    command = [*launcher, sys.executable, "-m", "hpc_llm.supervise.stacks", str(run_dir)]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), output.open("ab") as file:
        subprocess.run(
            command,
            stdout=file,
            stderr=file,
            env=environment,
            timeout=STACKS_TIMEOUT_S,
            check=False,
        )


def pick_port(key: str) -> int:
    """A free TCP port below the ephemeral range, if possible a different one for every `key`."""
    low = _LOWEST_PORT
    high = _highest_port()
    start = zlib.crc32(key.encode())
    for offset in range(high - low):
        port = low + (start + offset) % (high - low)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port from {low} to {high}")


def _highest_port() -> int:
    """Where the ephemeral range begins, unless that leaves next to nothing."""
    if _EPHEMERAL.exists():
        first = int(_EPHEMERAL.read_text().split()[0])
        if first > _LOWEST_PORT + 1000:
            return first
    return _HIGHEST_PORT
