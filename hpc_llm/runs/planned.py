"""A run that has been examined, as it travels from the examination to the queue."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs.layout import RunLayout


@dataclass(frozen=True)
class PlannedRun:
    """What a run is, what it needs, and where it lies or will lie: worked out once."""

    config: RunConfig  # as its user gave it
    plan: RunPlan
    layout: RunLayout
