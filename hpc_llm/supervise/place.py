"""Where a supervisor runs its ranks: on this machine, or in a Slurm allocation. Standard library
only.

A place knows how ranks are started, what a signal means, and how to continue the run when its time
is up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.runs.orders import ExitCode
from hpc_llm.slurm import client
from hpc_llm.storage.patience import patiently
from hpc_llm.supervise import successor
from hpc_llm.supervise.steps import LocalStep, SrunStep, Step, StepSpec

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10000
PATIENCE_S = 1800.0  # while slurmctld is down
ADDRESS_PATIENCE_S = 120.0
AGAIN_S = 2.0  # while name service and slurmctld are both down
STACKS_TIMEOUT_S = 60.0


class Place(Protocol):
    """See LocalPlace and SlurmPlace."""

    exclusive: bool  # whether a lock on the run directory tells a live supervisor from a dead one
    parental: bool  # whether ranks are children of this process and die with it
    outlives_nodes: bool  # whether it survives the loss of a node, because it has spare nodes
    restarts: int  # how often Slurm has started this very job before

    @property
    def hosts(self) -> Sequence[str]:
        """Names of the nodes with ranks on them, in the order of ranks; none for this machine."""

    def facts(self) -> dict[str, Any]:
        """What the ledger records about it."""

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        """Start the ranks of the fence's attempt; `log` gets the launcher's own output."""

    def enough_without(self, nodes: Collection[str]) -> bool:
        """Whether its remaining nodes suffice without these."""

    def leave_out(self, nodes: Collection[str]) -> None:
        """Start no more ranks on these nodes; spare nodes replace them."""

    def dump_stacks(self, run_dir: Path, output: Path) -> None:
        """Write where all ranks are stuck, by py-spy if it is installed; takes seconds, and never
        fails.
        """

    def ends_with(self, number: int) -> bool:
        """Whether signal `number` means that the place itself is ending: save and exit, without
        restarting.
        """

    def time_is_up(self, signals: Collection[int]) -> bool:
        """Whether `signals` say that the time limit is near, after which the job can be
        requeued.
        """

    def come_back(self, fence: Fence) -> str | None:
        """After the ranks have saved and exited because time is up: have the run restarted; how, or
        None.

        Not where a newer attempt than the fence's exists.
        """

    def hand_over(self, run: RunLayout, book: Ledger) -> bool:
        """Whether another place, without the bad nodes, takes over when this one ends."""

    def finished(self, run: RunLayout) -> None:
        """The run is complete: no job needs to wait for the end of this place any more."""

    def going(self) -> bool | None:
        """Whether the place is being taken away: exiting before that would end the job for good.
        None: unknown.
        """


class LocalPlace:
    """Processes on this machine, started by a user who waits for them."""

    exclusive = True
    parental = True
    hosts: Sequence[str] = ()
    outlives_nodes = False
    restarts = 0

    def facts(self) -> dict[str, Any]:
        return {"host": os.uname().nodename, "pid": os.getpid()}

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        return LocalStep(spec, ExitCode.STOPPED, pick_port(f"{log}/{os.getpid()}"))

    def enough_without(self, nodes: Collection[str]) -> bool:
        return False

    def leave_out(self, nodes: Collection[str]) -> None:
        pass

    def dump_stacks(self, run_dir: Path, output: Path) -> None:
        _dump_stacks([], run_dir, output)

    def ends_with(self, number: int) -> bool:
        return False

    def time_is_up(self, signals: Collection[int]) -> bool:
        return False

    def come_back(self, fence: Fence) -> str | None:
        return None

    def hand_over(self, run: RunLayout, book: Ledger) -> bool:
        return False

    def finished(self, run: RunLayout) -> None:
        pass

    def going(self) -> bool:
        return False


class SlurmPlace:
    """The allocation whose batch shell is this process: `num_nodes` for ranks, and spare nodes.

    No lock: a supervisor whose node Slurm considers dead may live on and hold it. The fence decides
    (runs.attempts).
    """

    exclusive = False
    parental = False

    def __init__(self, environment: dict[str, str], num_nodes: int) -> None:
        self.job = client.own_address(environment)
        self._usable = client.hostnames(environment["SLURM_JOB_NODELIST"])
        self._num_nodes, self.outlives_nodes = num_nodes, len(self._usable) > num_nodes
        self.restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        # Of those whom the first rank may come to lie on, while name service and slurmctld answer.
        self._addresses = {
            host: address
            for host in self._firsts()
            if (address := master_address(host)) is not None
        }

    @property
    def hosts(self) -> Sequence[str]:
        return self._usable[: self._num_nodes]

    def _firsts(self) -> list[str]:
        return [*self._usable[:1], *self._usable[self._num_nodes :]]

    def facts(self) -> dict[str, Any]:
        here = {"host": os.uname().nodename, "pid": os.getpid()}
        return {**here, "job": self.job, "restarts": self.restarts, "nodes": list(self.hosts)}

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        tasks_per_node = spec.world_size // len(self.hosts)
        options = [
            *("--overlap", f"--nodes={len(self.hosts)}", f"--ntasks={spec.world_size}"),
            *(
                f"--ntasks-per-node={tasks_per_node}",
                f"--nodelist={','.join(self.hosts)}",
                "--distribution=block",
            ),
            *(
                f"--cpus-per-task={spec.threads_per_rank}",
                "--kill-on-bad-exit=1",
                "--wait=60",
                "--export=ALL",
            ),
            # all of the job's; a step that Slurm has not noticed to be over keeps nothing back
            "--mem=0",
            *(f"--output={spec.log(0).parent}/rank-%4t.log", "--open-mode=append", "--input=none"),
        ]
        address = self._master_address()
        place = {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(pick_port(f"{log}/{self.job}")),
        }
        if address.startswith("127."):
            place["GLOO_SOCKET_IFNAME"] = place["NCCL_SOCKET_IFNAME"] = "lo"
        return SrunStep(
            spec, ExitCode.STOPPED, options, place, log, partial(self._signal_tasks, fence)
        )

    def _master_address(self) -> str:
        """Address of the first rank's node, retried while it cannot be resolved; its name if it
        never can.
        """
        host = self.hosts[0]
        deadline = time.monotonic() + ADDRESS_PATIENCE_S
        while host not in self._addresses and time.monotonic() < deadline:
            if (address := master_address(host)) is None:
                time.sleep(AGAIN_S)
            else:
                self._addresses[host] = address
        return self._addresses.get(host, host)

    def enough_without(self, nodes: Collection[str]) -> bool:
        return len(self._left(nodes)) >= self._num_nodes

    def leave_out(self, nodes: Collection[str]) -> None:
        """A spare node takes the position of the one it replaces, so that the other ranks stay
        where they are.
        """
        left = self._left(nodes)
        spare = iter(node for node in left if node not in self.hosts)
        moved = [node if node in left else next(spare, None) for node in self.hosts]
        hosts = [node for node in moved if node is not None]
        self._usable = hosts + [node for node in left if node not in hosts]

    def _left(self, nodes: Collection[str]) -> list[str]:
        """The original nodes that Slurm has not lost since, without `nodes`."""
        there = set(self._usable)
        with contextlib.suppress(client.SlurmError):
            there = {
                node for job in client.show(self.job) for node in client.hostnames(job.node_list)
            }
        return [node for node in self._usable if node in there and node not in nodes]

    def _signal_tasks(self, fence: Fence, name: str) -> bool:
        """By the job's number, which may be another attempt's by now: Fenced then. False where that
        is not seen.
        """
        try:
            fence.check()
            client.signal_steps(self.job, name)
        except (OSError, client.SlurmError):
            return False
        return True

    def dump_stacks(self, run_dir: Path, output: Path) -> None:
        nodes = [
            f"--nodes={len(self.hosts)}",
            f"--nodelist={','.join(self.hosts)}",
            "--ntasks-per-node=1",
        ]
        _dump_stacks(
            ["srun", "--overlap", *nodes, "--mem=0", "--input=none", "--label"], run_dir, output
        )

    def ends_with(self, number: int) -> bool:
        return number == signal.SIGTERM

    def time_is_up(self, signals: Collection[int]) -> bool:
        return signal.SIGUSR2 in signals

    def come_back(self, fence: Fence) -> str | None:
        """Requeue this job or array task, unless it is being ended: a user's scancel is final."""
        return client.requeue_own(
            self.job, patience_s=PATIENCE_S, ours=lambda: not patiently(fence.tripped)
        )

    def hand_over(self, run: RunLayout, book: Ledger) -> bool:
        with contextlib.suppress(*successor.FAILURES):
            return successor.hand_over(run, book)
        return False

    def finished(self, run: RunLayout) -> None:
        with contextlib.suppress(*successor.FAILURES):
            successor.withdraw(run)

    def going(self) -> bool | None:
        """Asked before a failed job exits. During the grace time of a preemption, PreemptTime is
        set.
        """
        try:
            return any(job.ending for job in client.show(self.job))
        except client.SlurmError:
            return None


def _dump_stacks(launcher: list[str], run_dir: Path, output: Path) -> None:
    """Uses this interpreter on the bare node: from there py-spy sees into containers, but from
    inside not out.
    """
    command = [*launcher, sys.executable, "-m", "hpc_llm.supervise.stacks", str(run_dir)]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), output.open("ab") as file:
        subprocess.run(command, stdout=file, stderr=file, timeout=STACKS_TIMEOUT_S, check=False)


def master_address(host: str) -> str | None:
    """An address of `host` that other nodes can reach: its name if it resolves, else Slurm's
    NodeAddr, if known.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        with contextlib.suppress(client.SlurmError):
            return client.node_address(host)
        return None
    return host


def pick_port(key: str) -> int:
    """A free TCP port below the ephemeral range, if possible a different one for every `key`."""
    low = _LOWEST_PORT
    high = 32768
    if _EPHEMERAL.exists():
        first = int(_EPHEMERAL.read_text().split()[0])
        high = first if first > low + 1000 else high
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
