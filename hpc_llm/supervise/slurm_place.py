"""The Slurm allocation that a supervisor is the batch shell of. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.runs.orders import ExitCode
from hpc_llm.slurm import client, step
from hpc_llm.slurm.site import requeues_within_grace
from hpc_llm.slurm.step import Grant, StepRequest
from hpc_llm.storage.patience import patiently
from hpc_llm.supervise import successor
from hpc_llm.supervise.place import Place, pick_port, run_stacks
from hpc_llm.supervise.srun_step import SrunStep
from hpc_llm.supervise.steps import Step, StepSpec

PATIENCE_S = 1800.0  # while slurmctld is down
ADDRESS_PATIENCE_S = 120.0
_FAR_AWAY = "192.0.2.1"  # no machine's (RFC 5737); the way there is the default route
_ANY_PORT = 9
AGAIN_S = 2.0  # while name service and slurmctld are both down


class SlurmPlace(Place):
    """The allocation whose batch shell is this process: cluster.nodes for ranks, and spare nodes.

    No lock: a supervisor whose node Slurm considers dead may live on and hold it. The fence decides
    (runs.attempts).
    """

    exclusive = False
    parental = False

    def __init__(self, environment: dict[str, str], cluster: ClusterConfig) -> None:
        num_nodes = cluster.nodes
        self._cluster = cluster
        self._grant = Grant.of(environment)
        self._has_started = False  # whether it has started a step before
        self.job = client.own_address(environment)
        self._job_name = environment.get("SLURM_JOB_NAME")
        self._usable = client.hostnames(environment["SLURM_JOB_NODELIST"])
        self._num_nodes = num_nodes
        self.outlives_nodes = len(self._usable) > num_nodes
        self.restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self._addresses = _known_addresses([*self._usable[:1], *self._usable[num_nodes:]])

    @property
    def hosts(self) -> Sequence[str]:
        return self._usable[: self._num_nodes]

    def facts(self) -> dict[str, Any]:
        allocation = {
            "job": self.job,
            "job_name": self._job_name,
            "restarts": self.restarts,
            "nodes": list(self.hosts),
        }
        return {**super().facts(), **allocation}

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Step:
        address = self.master_address()
        rendezvous = {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(pick_port(f"{log}/{self.job}")),
        }
        if address.startswith("127."):
            rendezvous["GLOO_SOCKET_IFNAME"] = "lo"
            rendezvous["NCCL_SOCKET_IFNAME"] = "lo"
        is_first = not self._has_started
        self._has_started = True
        return SrunStep(
            spec,
            ExitCode.STOPPED,
            self._srun_options(spec),
            rendezvous,
            log,
            partial(self.signal_tasks, fence),
            is_first,
        )

    def _srun_options(self, spec: StepSpec) -> list[str]:
        ranks_per_node = spec.world_size // len(self.hosts)
        request = StepRequest(
            self.hosts,
            spec.world_size,
            self.cpus_per_rank(ranks_per_node),
            f"{spec.log(0).parent}/rank-%4t.log",
        )
        return step.srun_options(self._cluster, request, self._grant)

    def cpus_per_rank(self, ranks_per_node: int) -> int | None:
        return step.cpus_per_rank(self._cluster, self._grant, ranks_per_node)

    def master_address(self) -> str:
        """Address of the first rank's node, or its name if the address cannot be found out.

        It is asked for again while it cannot be resolved, for ADDRESS_PATIENCE_S.
        """
        host = self.hosts[0]
        deadline = time.monotonic() + ADDRESS_PATIENCE_S
        while host not in self._addresses and time.monotonic() < deadline:
            address = reachable_address(host)
            if address is None:
                time.sleep(AGAIN_S)
            else:
                self._addresses[host] = address
        return self._addresses.get(host, host)

    def enough_without(self, nodes: Collection[str]) -> bool:
        return len(self._left(nodes)) >= self._num_nodes

    def leave_out(self, nodes: Collection[str]) -> None:
        """A spare node takes the position of the one it replaces: the other ranks stay put."""
        left = self._left(nodes)
        spare = iter([node for node in left if node not in self.hosts])
        hosts = []
        for node in self.hosts:
            replacement = node if node in left else next(spare, None)
            if replacement is not None:
                hosts.append(replacement)
        self._usable = hosts + [node for node in left if node not in hosts]

    def missing_hosts(self) -> tuple[str, ...]:
        left = self._left(())
        return tuple(node for node in self.hosts if node not in left)

    def _left(self, nodes: Collection[str]) -> list[str]:
        """The original nodes that Slurm has not lost since, without `nodes`."""
        allocated = set(self._usable)
        with contextlib.suppress(client.SlurmError):
            allocated = self._allocated()
        return [node for node in self._usable if node in allocated and node not in nodes]

    def _allocated(self) -> set[str]:
        """The nodes that the job has now. SlurmError where Slurm does not say."""
        nodes = set[str]()
        for job in client.show(self.job):
            nodes.update(client.hostnames(job.node_list))
        return nodes

    def signal_tasks(self, fence: Fence, name: str) -> bool:
        """Send signal `name` to the tasks of the job; whether Slurm took it.

        The job's number may be another attempt's by now: Fenced then.
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
        memory = step.memory_option(self._cluster)
        srun = ["srun", "--overlap", *nodes, *memory, "--input=none", "--label"]
        run_stacks(srun, run_dir, output, step.clean_environment(os.environ))

    def is_final_signal(self, number: int) -> bool:
        return number == signal.SIGTERM

    def time_is_up(self, signals: Collection[int]) -> bool:
        return signal.SIGUSR2 in signals

    def is_ending(self) -> bool | None:
        """Asked before a failed job exits. In a preemption's grace time, PreemptTime is set."""
        try:
            return any(job.ending for job in client.show(self.job))
        except client.SlurmError:
            return None

    def requeues_who_leaves(self) -> bool:
        try:
            jobs = client.show(self.job)
            in_grace = any(job.preempt_time is not None and job.requeue for job in jobs)
            return in_grace and requeues_within_grace(client.config())
        except client.SlurmError:
            return False

    def requeue(self, fence: Fence) -> str | None:
        """Requeue this job or array task, unless it is being ended: a user's scancel is final."""
        return client.requeue_own(
            self.job, patience_s=PATIENCE_S, ours=lambda: not patiently(fence.tripped)
        )

    def hand_to_successor(self, run: RunLayout, book: Ledger) -> bool:
        with contextlib.suppress(*successor.FAILURES):
            return successor.hand_over(run, book)
        return False

    def finished(self, run: RunLayout) -> None:
        with contextlib.suppress(*successor.FAILURES):
            successor.withdraw(run)


def _known_addresses(hosts: Sequence[str]) -> dict[str, str]:
    """Addresses of nodes that may come to host rank 0, found while name service still answers."""
    addresses = {}
    for host in hosts:
        address = reachable_address(host)
        if address is not None:
            addresses[host] = address
    return addresses


def reachable_address(host: str) -> str | None:
    """An address of `host` for other nodes: its name if that resolves, else Slurm's NodeAddr.

    Where a site shows its nodes to nobody, this machine's own address, and of others the name. None
    if nothing is known yet.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        try:
            return client.node_address(host)
        except client.SlurmRefused:
            return _own_address(host) or host
        except client.SlurmUnavailable:
            return None
    return host


def _own_address(host: str) -> str | None:
    """The address from which this machine, if it is `host`, speaks to Slurm's controller."""
    if host not in (os.environ.get("SLURMD_NODENAME"), socket.gethostname().partition(".")[0]):
        return None
    controller = ""
    with contextlib.suppress(client.SlurmError):
        controller = client.config().get("SlurmctldHost[0]", "")
    name, _, address = controller.rstrip(")").partition("(")
    for target in (address, name, _FAR_AWAY):
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            if target:
                probe.connect((target, _ANY_PORT))  # UDP: nothing is sent
                return str(probe.getsockname()[0])
    return None
