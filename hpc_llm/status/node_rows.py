"""Nodes with evidence against them, as the runs of a root exclude them: one row per node."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import look, node_evidence
from hpc_llm.recovery.node_evidence import NodeScore
from hpc_llm.recovery.run_record import RunRecord


def read_node_rows(root: Path) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first; Slurm is not asked."""
    return node_rows(root, look.read_all(root))


def node_rows(root: Path, records: Collection[RunRecord]) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first.

    Excluded for as long as any of the runs excludes it.
    """
    evidence = node_evidence.read(root)
    now = time.time()
    by_node = defaultdict[str, list[NodeScore]](list)
    for limits in _limits(records):
        for score in node_evidence.node_scores(evidence, now, *limits):
            by_node[score.node].append(score)
    worst = []
    for scores in by_node.values():
        worst.append(max(scores, key=_severity))
    worst.sort(key=lambda score: (-score.score, score.node))
    return [_row(score) for score in worst]


def _severity(score: NodeScore) -> tuple[float, float]:
    return score.excluded_until or 0.0, score.score


def _row(score: NodeScore) -> dict[str, Any]:
    evidence = [{"kind": seen.kind, "run": seen.run, "time": seen.time} for seen in score.evidence]
    return {
        "node": score.node,
        "score": score.score,
        "excluded_until": score.excluded_until,
        "evidence": evidence,
    }


def _limits(records: Collection[RunRecord]) -> set[tuple[float, int]]:
    """recovery.* of the runs that are not over, for those alone exclude nodes; else of all."""
    of_all = set()
    of_going = set()
    for record in records:
        limits = node_evidence.limits(record.config.recovery)
        of_all.add(limits)
        if not record.summary.over:
            of_going.add(limits)
    return of_going or of_all or {node_evidence.limits(RecoveryConfig())}
