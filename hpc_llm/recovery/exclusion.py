"""Which node a failure points at, and which nodes the next attempt leaves out."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery import failures, node_evidence
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import RunRecord, ledger_for
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.layout import RootLayout
from hpc_llm.runs.story import WATCHDOG
from hpc_llm.slurm import client, nodes
from hpc_llm.slurm.nodes import Node


@dataclass(frozen=True)
class LeaveOut:
    """Nodes to exclude from a run's next job. too_few: there are bad ones, but without them it
    could not run at all.
    """

    nodes: tuple[str, ...]
    too_few: bool = False


class NodeExclusions:
    """Evidence of a root, read once per pass, and sinfo asked once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._evidence: list[node_evidence.Evidence] | None = None
        self._nodes: list[Node] | None = None
        self._unwanted: dict[str, frozenset[str]] = {}

    def of_attempt(self, record: RunRecord) -> None:
        """Write down what the newest attempt's end says about a node, unless somebody has."""
        history = record.facts.history
        attempt = record.facts.attempt
        if not history or not attempt or history[-1].node is None:
            return
        end = history[-1]
        run = self._run(record)
        assert end.node is not None
        if (end.node, run, attempt) not in {
            (seen.node, seen.run, seen.attempt) for seen in self._all()
        }:
            node_evidence.witness(
                self._root,
                end.node,
                end.cause,
                self._log(record, attempt),
                run=run,
                attempt=attempt,
            )
            self._evidence = None

    def of_launch(self, record: RunRecord, node_list: str) -> list[str]:
        """The nodes that may have failed to start the job: those of its last life, or the drained
        ones among them.
        """
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

    def to_leave_out(self, record: RunRecord) -> LeaveOut | None:
        """None: nobody knows which nodes are up."""
        recovery = record.config.recovery
        cluster = record.config.cluster
        bad = node_evidence.excluded(
            node_evidence.node_scores(self._all(), time.time(), *node_evidence.limits(recovery))
        )
        if not bad:
            return LeaveOut(())
        try:
            wanted = set((cluster.partition or "").split(",")) - {""}
            there = [
                node
                for node in self._sinfo()
                if (node.partition in wanted if wanted else node.default)
            ]
            left = (
                {node.name for node in there if node.up}
                - bad
                - self._excluded_by_user(cluster.exclude)
            )
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
            node_evidence.report(
                self._root, node, "launch-failed", run=run, attempt=number, weight=weight
            )
            self._evidence = None

    def _run(self, record: RunRecord) -> str:
        return RootLayout(self._root).path_of(record.layout)

    def _all(self) -> list[node_evidence.Evidence]:
        if self._evidence is None:
            self._evidence = node_evidence.read(self._root)
        return self._evidence

    def _log(self, record: RunRecord, attempt: int) -> str:
        """The last words of the rank that failed first."""
        ends = [end for end in record.story.ends if end.attempt == attempt]
        rank = ends[-1].first_failed if ends else None
        if rank is None:
            return ""
        return "".join(failures.tails([record.layout.rank_log(attempt, rank)]))

    def _sinfo(self) -> Sequence[Node]:
        if self._nodes is None:
            self._nodes = nodes.ask()
        return self._nodes


@dataclass(frozen=True)
class Exclusion:
    """Nodes excluded from a job, including the user's own list (`words`, for Slurm), and what
    changed since last time.

    too_few: the nodes that come `back` are bad, but needed.
    """

    words: str
    new: list[str]
    back: list[str]
    too_few: bool

    def write_down(self, book: ledger.Ledger, **job: str) -> None:
        """Call after Slurm was told: what the ledger has is never told again. job: if it is not the
        run's yet.
        """
        if self.new:
            book.write(
                event_names.EXCLUDED,
                nodes=self.new,
                **job,
                why="evidence of this root's runs; see status --nodes",
            )
        if self.back:
            why = (
                "too few others are up"
                if self.too_few
                else "there is no evidence against them any more"
            )
            book.write(event_names.READMITTED, nodes=self.back, why=why)


def leave_out_of_waiting(
    blame: NodeExclusions, waiting: Mapping[str, tuple[RunRecord, bool]]
) -> tuple[dict[str, Exclusion], bool]:
    """Exclude bad nodes from pending jobs that need nothing else: one call to Slurm for all tasks
    of an array.

    waiting: runs, and whether Slurm lacks nodes for them: only then are bad but needed nodes given
    back. Returns what Slurm was told, by run, and whether it has answered every call.
    """
    tasks = defaultdict[tuple[str, str], dict[str, Exclusion]](dict)
    told = dict[str, Exclusion]()
    answered = True
    for path, (record, starved) in waiting.items():
        if record.facts.address is None:
            # cancelled and submitted anew since this pass asked for the queue: it waits for room
            continue
        answered = answered and blame.to_leave_out(record) is not None
        found = exclusion(record, blame, even_bad_ones=starved)
        if found is not None and (found.new or found.back):
            tasks[record.facts.address.partition("_")[0], found.words][path] = found
    for (array, words), runs in tasks.items():
        numbers = [str(waiting[path][0].facts.address).partition("_")[2] for path in runs]
        try:
            client.update(
                f"{array}_[{','.join(numbers)}]" if numbers[0] else array, ExcNodeList=words
            )
        except client.SlurmRefused:
            continue  # it has started meanwhile
        except client.SlurmUnavailable:
            answered = False
            continue
        for path, found in runs.items():
            found.write_down(ledger_for(waiting[path][0]))
        told |= runs
    return told, answered


def exclusion(
    record: RunRecord, blame: NodeExclusions, *, even_bad_ones: bool = True
) -> Exclusion | None:
    """None: leave it as it is. even_bad_ones: give back nodes without which the run would wait for
    ever.
    """
    found = blame.to_leave_out(record)
    known = _excluded_so_far(record)
    if found is None or not (found.nodes or known) or (found.too_few and not even_bad_ones):
        return None
    bad = set(found.nodes)
    words = [word for word in (record.config.cluster.exclude, *found.nodes) if word]
    return Exclusion(",".join(words), sorted(bad - known), sorted(known - bad), found.too_few)


def _excluded_so_far(record: RunRecord) -> set[str]:
    """Nodes excluded from the run's job, by watchdogs and by the job before it, since its user
    submitted it.
    """
    submitted = record.story.last_sending(event_names.SUBMITTED)
    since = submitted.time if submitted else -math.inf
    excluded: set[str] = set()
    for change in record.story.node_changes:
        if change.time < since:
            continue
        if not change.excluded:
            excluded -= set(change.nodes)
        elif change.writer.startswith(WATCHDOG) or change.job == record.facts.address:
            excluded |= set(change.nodes)
    return excluded
