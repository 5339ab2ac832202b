"""Which nodes the next job of a run leaves out, by the evidence of all runs of its root."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery import failures, node_evidence
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.node_evidence import Evidence
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.entries import WATCHDOG
from hpc_llm.runs.layout import RootLayout
from hpc_llm.slurm import client, nodes
from hpc_llm.slurm.nodes import Node


@dataclass(frozen=True)
class BadNodes:
    """Nodes to exclude from a run's next job."""

    names: tuple[str, ...]
    too_few_others: bool = False  # there are bad ones, but without them it could not run at all


class NodeExclusions:
    """The evidence of a root, read once per pass, and sinfo, asked once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._evidence: list[Evidence] | None = None
        self._nodes: list[Node] | None = None
        self._excluded_by_users: dict[str, frozenset[str]] = {}

    def witness_attempt(self, record: RunRecord) -> None:
        """Record what the newest attempt's end says about a node, unless somebody has."""
        history = record.summary.history
        attempt = record.summary.attempt
        if not history or not attempt or history[-1].node is None:
            return
        node = history[-1].node
        run = self._path_of(record)
        for seen in self._read():
            if (seen.node, seen.run, seen.attempt) == (node, run, attempt):
                return
        log = _last_words(record, attempt)
        node_evidence.witness(self._root, node, history[-1].cause, log, run=run, attempt=attempt)
        self._evidence = None

    def witness_launch(self, record: RunRecord, node_list: str) -> list[str]:
        """The nodes that may have failed to start the job, with the evidence recorded.

        Those of its last life, or the drained ones among them.
        """
        if not node_list:
            return []
        with contextlib.suppress(client.SlurmError):
            names = client.hostnames(node_list)
            down = {node.name for node in self._sinfo() if not node.up}
            suspects = [name for name in names if name in down] or names
            launches = sum(end.cause is Cause.LAUNCH_FAILED for end in record.summary.history)
            for name in suspects:
                self._report_launch(name, self._path_of(record), launches, 1 / len(suspects))
            return suspects
        return []

    def bad_nodes(self, record: RunRecord) -> BadNodes | None:
        """What the run's next job must not start on; None: it is not known which nodes are up."""
        cluster = record.config.cluster
        bad = node_evidence.excluded_by(self._read(), record.config.recovery)
        if not bad:
            return BadNodes(())
        try:
            others = self._up_for(cluster.partition) - bad - self._excluded_by(cluster.exclude)
        except client.SlurmError:
            return None
        if len(others) < cluster.nodes + cluster.spare_nodes:
            return BadNodes((), too_few_others=True)
        return BadNodes(tuple(sorted(bad)))

    def _up_for(self, partition: str | None) -> set[str]:
        """Nodes that are up in these partitions (with commas), or in the default one."""
        wanted = set((partition or "").split(",")) - {""}
        up = set()
        for node in self._sinfo():
            suits = node.default
            if wanted:
                suits = node.partition in wanted
            if suits and node.up:
                up.add(node.name)
        return up

    def _excluded_by(self, node_list: str | None) -> frozenset[str]:
        """The nodes of a user's own list, in Slurm's spelling."""
        if not node_list:
            return frozenset()
        if node_list not in self._excluded_by_users:
            self._excluded_by_users[node_list] = frozenset(client.hostnames(node_list))
        return self._excluded_by_users[node_list]

    def _report_launch(self, node: str, run: str, number: int, weight: float) -> None:
        kind = "launch-failed"
        for seen in self._read():
            if (seen.node, seen.kind, seen.run, seen.attempt) == (node, kind, run, number):
                return
        node_evidence.report(self._root, node, kind, run=run, attempt=number, weight=weight)
        self._evidence = None

    def _path_of(self, record: RunRecord) -> str:
        return RootLayout(self._root).path_of(record.layout)

    def _read(self) -> list[Evidence]:
        if self._evidence is None:
            self._evidence = node_evidence.read(self._root)
        return self._evidence

    def _sinfo(self) -> Sequence[Node]:
        if self._nodes is None:
            self._nodes = nodes.ask()
        return self._nodes


@dataclass(frozen=True)
class Exclusion:
    """What a job is to exclude, and what of that is new since last time."""

    node_list: str  # for Slurm, with the user's own list
    new: list[str]
    readmitted: list[str]
    too_few_others: bool  # those readmitted are bad, but needed

    def record(self, book: ledger.Ledger, **job: str) -> None:
        """Call after Slurm was told: what the ledger has is never told again.

        job: if it is not the run's yet.
        """
        if self.new:
            why = "evidence of this root's runs; see status --nodes"
            book.write(event_names.EXCLUDED, nodes=self.new, **job, why=why)
        if self.readmitted:
            why = "there is no evidence against them any more"
            if self.too_few_others:
                why = "too few others are up"
            book.write(event_names.READMITTED, nodes=self.readmitted, why=why)


def find_exclusion(
    record: RunRecord, exclusions: NodeExclusions, *, readmit_bad: bool = True
) -> Exclusion | None:
    """What the run's job is to exclude; None: leave it as it is.

    readmit_bad: give back nodes without which the run would wait for ever.
    """
    bad = exclusions.bad_nodes(record)
    known = _excluded_so_far(record)
    if bad is None or not (bad.names or known) or (bad.too_few_others and not readmit_bad):
        return None
    names = set(bad.names)
    node_list = ",".join(name for name in (record.config.cluster.exclude, *bad.names) if name)
    return Exclusion(node_list, sorted(names - known), sorted(known - names), bad.too_few_others)


def exclude_from_pending(
    exclusions: NodeExclusions, waiting: Mapping[str, tuple[RunRecord, bool]]
) -> tuple[dict[str, Exclusion], bool]:
    """Exclude bad nodes from pending jobs that need nothing else.

    One call to Slurm for all tasks of an array. waiting: runs, and whether Slurm lacks nodes for
    them: only then are bad but needed nodes given back. Returns what Slurm was told, by run, and
    whether it has answered every call.
    """
    tasks = defaultdict[tuple[str, str], dict[str, Exclusion]](dict)
    answered = True
    for path, (record, starved) in waiting.items():
        if record.summary.address is None:
            # cancelled and submitted again since this pass asked for the queue: it waits for room
            continue
        answered = answered and exclusions.bad_nodes(record) is not None
        change = find_exclusion(record, exclusions, readmit_bad=starved)
        if change is not None and (change.new or change.readmitted):
            array = record.summary.address.partition("_")[0]
            tasks[array, change.node_list][path] = change
    told = dict[str, Exclusion]()
    for (array, node_list), changes in tasks.items():
        numbers = [str(waiting[path][0].summary.address).partition("_")[2] for path in changes]
        address = f"{array}_[{','.join(numbers)}]" if numbers[0] else array
        try:
            client.update(address, ExcNodeList=node_list)
        except client.SlurmRefused:
            continue  # it has started meanwhile
        except client.SlurmUnavailable:
            answered = False
            continue
        for path, change in changes.items():
            change.record(waiting[path][0].watchdog_ledger())
        told |= changes
    return told, answered


def _excluded_so_far(record: RunRecord) -> set[str]:
    """Nodes excluded from the run's job since its user submitted it.

    By watchdogs, and by the job before it.
    """
    submitted = record.story.last_sending(event_names.SUBMITTED)
    since = -math.inf
    if submitted is not None:
        since = submitted.time
    excluded: set[str] = set()
    for change in record.story.node_changes:
        if change.time < since:
            continue
        if not change.excluded:
            excluded -= set(change.nodes)
        elif change.writer.startswith(WATCHDOG) or change.job == record.summary.address:
            excluded |= set(change.nodes)
    return excluded


def _last_words(record: RunRecord, attempt: int) -> str:
    """The end of the log of the rank that failed first."""
    for end in reversed(record.story.ends):
        if end.attempt != attempt:
            continue
        if end.first_failed is None:
            return ""
        log = record.layout.rank_log(attempt, end.first_failed)
        return "".join(failures.tails([log]))
    return ""
