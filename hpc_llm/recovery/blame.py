"""Which node a failure points at, and which nodes the next attempt leaves out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery import errors, nodes
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.facts import Record
from hpc_llm.runs.layout import RootLayout
from hpc_llm.slurm import client

_UP = ("idle", "mixed", "allocated", "completing", "reserved", "planned")


@dataclass(frozen=True)
class Node:
    """A node as sinfo knows it."""

    name: str
    partition: str
    default: bool  # whether it is in the partition that jobs go to which name none
    state: str

    @property
    def up(self) -> bool:
        return self.state.rstrip("*~#!%$@^-+").lower().startswith(_UP) and not self.state.endswith("*")


@dataclass(frozen=True)
class LeaveOut:
    """Nodes to exclude from a run's next job. too_few: there are bad ones, but without them it could not run at all."""

    nodes: tuple[str, ...]
    too_few: bool = False


class Blame:
    """Evidence of a root, read once per pass, and sinfo asked once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._evidence: list[nodes.Evidence] | None = None
        self._nodes: list[Node] | None = None
        self._unwanted: dict[str, frozenset[str]] = {}

    def of_attempt(self, record: Record) -> None:
        """Write down what the newest attempt's end says about a node, unless somebody has."""
        history, attempt = record.facts.history, record.facts.attempt
        if not history or not attempt or history[-1].node is None:
            return
        end, run = history[-1], self._run(record)
        assert end.node is not None
        if (end.node, run, attempt) not in {(seen.node, seen.run, seen.attempt) for seen in self._all()}:
            nodes.witness(self._root, end.node, end.cause, self._log(record, attempt), run=run, attempt=attempt)
            self._evidence = None

    def of_launch(self, record: Record, node_list: str) -> list[str]:
        """The nodes that may have failed to start the job: those of its last life, or the drained ones among them."""
        if not node_list:
            return []
        with contextlib.suppress(client.SlurmError):
            names = client.hostnames(node_list)
            down = {node.name for node in self._sinfo() if not node.up}
            suspects = [name for name in names if name in down] or names
            launches = sum(end.cause is Cause.LAUNCH_FAILED for end in record.facts.history)
            for name in suspects:
                self._launch_failed(name, self._run(record), launches, 1 / len(suspects))
            return suspects
        return []

    def to_leave_out(self, record: Record) -> LeaveOut | None:
        """None: nobody knows which nodes are up."""
        recovery, cluster = record.config.recovery, record.config.cluster
        bad = nodes.excluded(nodes.standings(self._all(), time.time(), *nodes.limits(recovery)))
        if not bad:
            return LeaveOut(())
        try:
            wanted = set((cluster.partition or "").split(",")) - {""}
            there = [node for node in self._sinfo() if (node.partition in wanted if wanted else node.default)]
            left = {node.name for node in there if node.up} - bad - self._excluded_by_user(cluster.exclude)
        except client.SlurmError:
            return None
        if len(left) < cluster.nodes + cluster.spare_nodes:
            return LeaveOut((), too_few=True)
        return LeaveOut(tuple(sorted(bad)))

    def _excluded_by_user(self, node_list: str | None) -> frozenset[str]:
        if not node_list:
            return frozenset()
        if node_list not in self._unwanted:
            self._unwanted[node_list] = frozenset(client.hostnames(node_list))
        return self._unwanted[node_list]

    def _launch_failed(self, node: str, run: str, number: int, weight: float) -> None:
        key = (node, "launch-failed", run, number)
        if key not in {(seen.node, seen.kind, seen.run, seen.attempt) for seen in self._all()}:
            nodes.report(self._root, node, "launch-failed", run=run, attempt=number, weight=weight)
            self._evidence = None

    def _run(self, record: Record) -> str:
        return RootLayout(self._root).path_of(record.layout)

    def _all(self) -> list[nodes.Evidence]:
        if self._evidence is None:
            self._evidence = nodes.read(self._root)
        return self._evidence

    def _log(self, record: Record, attempt: int) -> str:
        """The last words of the rank that failed first."""
        ended = [e.facts for e in record.events if e.event == "ended" and e.facts.get("attempt") == attempt]
        rank = ended[-1].get("first_failed") if ended else None
        if rank is None:
            return ""
        return "".join(errors.tails([record.layout.rank_log(attempt, rank)]))

    def _sinfo(self) -> Sequence[Node]:
        if self._nodes is None:
            rows = (line.split("|") for line in client.call(*_SINFO).splitlines())
            self._nodes = [Node(r[0], r[1].rstrip("*"), r[1].endswith("*"), r[2]) for r in rows if len(r) == 3]
        return self._nodes


_SINFO = ("sinfo", "--noheader", "--Node", "--format=%N|%P|%T")
