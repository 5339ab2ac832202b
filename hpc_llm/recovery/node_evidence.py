"""Evidence against nodes, from all runs of a root: one append-only file per writer, merged on read.

Standard library only: supervisors write it too.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.files import append_line

# The weight of each kind; a node is excluded from 1 on. A fault reported by the hardware itself is
# enough, and so is a launch that failed on one node only, or ranks that stay behind; a death may be
# the program's fault, so it takes two.
WEIGHTS = {
    "gpu-fault": 1.0,
    "launch-failed": 1.0,
    "node-failure": 0.5,
    "death": 0.5,
    "hang": 0.5,
    "slow": 1.0,
}
_KINDS = {Cause.KILLED: "death", Cause.HANG: "hang", Cause.NODE_FAILURE: "node-failure"}
CLEARED = "cleared"
ENOUGH = 1.0

# Xid numbers that mean hardware (NVIDIA's "GPU Deployment and Management", Xid catalogue): 48, 94
# and 95 ECC, 63 and 64 row remapping, 74 NVLink, 79 fallen off the bus, 92 many single-bit errors,
# 119 and 120 GSP, 140 ECC unrecovered.
_XID = re.compile(r"\bXid\b[^\n]*?:\s*(48|63|64|74|79|92|94|95|119|120|140)\b")
_FAULT = re.compile(
    r"uncorrectable (NVLink|ECC) error|double.bit ECC|fallen off the bus|CUDA error: (an "
    r")?(un)?correctable ECC"
    r"|cudaErrorECCUncorrectable|Machine check|hardware stack error|cudaErrorNvlinkUncorrectable",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Evidence:
    """One observation. `time` is seconds since the epoch."""

    time: float
    node: str
    kind: str  # one of WEIGHTS, or cleared
    run: str  # its path below the root
    attempt: int
    weight: float
    said: str = ""


@dataclass(frozen=True)
class NodeScore:
    """The evidence against one node, and its weight."""

    node: str
    score: float
    evidence: tuple[Evidence, ...]
    excluded_until: float | None  # None: it is not enough, or enough nodes are excluded already


def report(
    root: Path, node: str, kind: str, *, run: str, attempt: int, weight: float = 1.0, said: str = ""
) -> None:
    """Record one observation; `weight` divides the blame if several nodes may be responsible.

    The same kind for the same node and attempt counts once, however often it is reported.
    """
    folder = RootLayout(root).nodes
    folder.mkdir(exist_ok=True)
    scale = WEIGHTS.get(kind, 0.0) * weight
    seen = Evidence(round(time.time(), 3), node, kind, run, attempt, round(scale, 3), said[:300])
    append_line(folder / f"{os.uname().nodename}-{os.getpid()}.jsonl", json.dumps(seen.__dict__))


def witness(root: Path, node: str, cause: Cause, log: str, *, run: str, attempt: int) -> None:
    """Record what the end of an attempt says about `node`.

    log: of the rank that failed first, if it ran there. A Python error is the program's fault; a
    death by signal, a hang or a lost node may be the node's.
    """
    for line in faults_in(log)[:1]:
        report(root, node, "gpu-fault", run=run, attempt=attempt, said=line)
    if cause in _KINDS:
        report(root, node, _KINDS[cause], run=run, attempt=attempt)


def clear(root: Path, node: str) -> None:
    """Clear the evidence against `node`, at a user's request."""
    report(root, node, CLEARED, run="", attempt=0)


def read(root: Path) -> list[Evidence]:
    """All reports that this user may read, in order of time; truncated lines are skipped."""
    evidence = []
    for path in sorted(RootLayout(root).nodes.glob("*.jsonl")):
        try:
            text = path.read_text(errors="replace")
        except PermissionError:
            continue
        for line in text.splitlines():
            try:
                evidence.append(Evidence(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return sorted(evidence, key=lambda seen: seen.time)


def volume(root: Path) -> int:
    """Size of all reports in bytes: if it changes, there is something new."""
    return sum(path.stat().st_size for path in RootLayout(root).nodes.glob("*.jsonl"))


def excluded_now(root: Path, recovery: RecoveryConfig) -> frozenset[str]:
    """The nodes that the runs of `root` exclude by what is known now."""
    return excluded_by(read(root), recovery)


def excluded_by(evidence: Sequence[Evidence], recovery: RecoveryConfig) -> frozenset[str]:
    """The nodes that a run with these settings excludes now, by this evidence."""
    return excluded(node_scores(evidence, time.time(), *limits(recovery)))


def limits(recovery: RecoveryConfig) -> tuple[float, int]:
    """Hours that evidence counts, and how many nodes are excluded at most."""
    return recovery.node_exclusion_h, recovery.max_excluded_nodes


def node_scores(
    evidence: Sequence[Evidence], now: float, exclusion_h: float, most: int
) -> list[NodeScore]:
    """Nodes with evidence from the last `exclusion_h`, the worst first; `most` can be excluded."""
    by_node = _counted(evidence, now, exclusion_h)
    weights = {node: sum(seen.weight for seen in counted) for node, counted in by_node.items()}
    scores = []
    for place, node in enumerate(sorted(weights, key=lambda node: (-weights[node], node))):
        until = _until(by_node[node], exclusion_h) if place < most else None
        scores.append(NodeScore(node, round(weights[node], 3), tuple(by_node[node]), until))
    return scores


def excluded(scores: Iterable[NodeScore]) -> frozenset[str]:
    """The nodes to exclude."""
    return frozenset(score.node for score in scores if score.excluded_until is not None)


def _counted(
    evidence: Sequence[Evidence], now: float, exclusion_h: float
) -> dict[str, list[Evidence]]:
    """What counts against each node: new enough, and once per kind and attempt."""
    by_node: dict[str, dict[tuple[str, str, int], Evidence]] = {}
    for seen in evidence:
        if seen.kind == CLEARED:
            by_node.pop(seen.node, None)
        elif now - seen.time < exclusion_h * 3600:
            by_node.setdefault(seen.node, {}).setdefault((seen.kind, seen.run, seen.attempt), seen)
    return {node: list(counted.values()) for node, counted in by_node.items()}


def _until(evidence: Sequence[Evidence], exclusion_h: float) -> float | None:
    """When the remaining evidence will no longer be enough; None if it never was."""
    rest = sum(seen.weight for seen in evidence)
    if rest < ENOUGH - 1e-9:
        return None
    for seen in sorted(evidence, key=lambda seen: seen.time):
        rest -= seen.weight
        if rest < ENOUGH - 1e-9:
            return seen.time + exclusion_h * 3600
    return None


def faults_in(text: str) -> list[str]:
    """Lines of a log in which the hardware reports a fault: ECC, Xid, NVLink, machine checks."""
    return [line.strip() for line in text.splitlines() if _XID.search(line) or _FAULT.search(line)]
