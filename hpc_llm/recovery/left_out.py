"""Nodes with evidence against them, as the runs of a root leave them out: for `status`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import nodes
from hpc_llm.recovery.facts import Record


def rows(root: Path, records: Collection[Record]) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first; excluded for as long as any of the runs leaves it out."""
    evidence, now = nodes.read(root), time.time()
    by_node = defaultdict[str, list[nodes.Standing]](list)
    for limits in _limits(records):
        for one in nodes.standings(evidence, now, *limits):
            by_node[one.node].append(one)
    found = [max(several, key=lambda one: (one.excluded_until or 0.0, one.score)) for several in by_node.values()]
    return [
        {
            "node": one.node,
            "score": one.score,
            "excluded_until": one.excluded_until,
            "evidence": [{"kind": seen.kind, "run": seen.run, "time": seen.time} for seen in one.evidence],
        }
        for one in sorted(found, key=lambda one: (-one.score, one.node))
    ]


def _limits(records: Collection[Record]) -> set[tuple[float, int]]:
    """recovery.* of the runs that are not over, for those alone leave nodes out; where all are, of all."""
    going = [record for record in records if not record.facts.completed and record.facts.final is None]
    return {nodes.limits(record.config.recovery) for record in going or records} or {nodes.limits(RecoveryConfig())}
