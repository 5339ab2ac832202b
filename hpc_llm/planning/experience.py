"""What runs alike have shown, as far as the planner asks for it; runs.experience keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The most sequences per rank and pass that are left to try, and the run that had to halve a larger number."""

    micro_batch: int
    run: str


@dataclass(frozen=True)
class Speed:
    """Median over steps, without saves and evaluations, of a run on so many ranks."""

    tokens_per_second: float  # over all ranks
    world_size: int
    run: str


class Experience:
    """Of runs with one configuration; this one has none."""

    def limit(self, zero_stage: int, activation_checkpointing: bool) -> Limit | None:
        """How large a micro-batch may be."""
        return None

    def speed(self, zero_stage: int, activation_checkpointing: bool, micro_batch: int) -> Speed | None:
        """How fast a run was that took its steps so."""
        return None


NONE = Experience()
