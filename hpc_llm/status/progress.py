"""How far a run has come and how fast it is, by the end of its metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage.files import tail

_TAIL_BYTES = 4096


def first_step_at(layout: RunLayout) -> float | None:
    """When the run's first step was done: seconds since the epoch."""
    try:
        with layout.metrics.open() as file:
            first = json.loads(file.readline())
        return float(first["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_steps(layout: RunLayout) -> list[dict[str, Any]]:
    """The newest whole rows of steps, oldest first; only the end of the file is read."""
    try:
        lines = tail(layout.metrics, _TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    steps = []
    for line in lines:
        # A line may be cut off by the tail's beginning, or be written just now.
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "loss" in row:
                steps.append(row)
    return steps


def usual_speed(steps: Sequence[dict[str, Any]]) -> float | None:
    """Tokens per second: the median, since a step may have waited for a save."""
    speeds = [float(row["tokens_per_second"]) for row in steps if "tokens_per_second" in row]
    return statistics.median(speeds) if speeds else None


def eta_s(step: int, plan: dict[str, Any], tokens_per_second: float | None) -> float | None:
    """Training time left at this speed; saves, evaluations and the queue come on top."""
    if not tokens_per_second or "tokens_per_step" not in plan:
        return None
    return float(plan["steps"] - step) * float(plan["tokens_per_step"]) / tokens_per_second
