"""What comparable runs have shown, as far as the planner needs it; runs.experience stores it."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.planning.step_mode import StepMode


@dataclass(frozen=True)
class Limit:
    """The most sequences per rank and pass still worth trying, and the run that showed it.

    That run had to halve a larger number.
    """

    micro_batch: int
    run: str


@dataclass(frozen=True)
class Speed:
    """A run's median speed over steps, without saves and evaluations, and its number of ranks."""

    tokens_per_second: float  # over all ranks
    world_size: int
    run: str


class Experience:
    """The experience of runs with one configuration; this base class has none."""

    def limit(self, mode: StepMode) -> Limit | None:
        """How large a micro-batch may be."""
        return None

    def speed(self, mode: StepMode, micro_batch: int) -> Speed | None:
        """Measured speed of a run with these settings."""
        return None


NONE = Experience()
