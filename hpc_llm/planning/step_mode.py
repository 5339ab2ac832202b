"""How a step divides memory and work: the ZeRO stage, and whether activations are recomputed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMode:
    """What a rank keeps of the model's states, and what it computes twice instead of keeping."""

    zero_stage: int
    activation_checkpointing: bool


# Cheapest first: ZeRO-2 adds traffic only with accumulation, checkpointing a third of the FLOPs,
# ZeRO-3 half as much traffic again and hooks on every module.
CHEAPEST_FIRST: tuple[StepMode, ...] = (
    StepMode(1, False),
    StepMode(2, False),
    StepMode(1, True),
    StepMode(2, True),
    StepMode(3, False),
    StepMode(3, True),
)
# Used only if the user asks for it, or did when the run was saved.
STAGE_0: tuple[StepMode, ...] = (StepMode(0, False), StepMode(0, True))
