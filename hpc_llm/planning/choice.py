"""ZeRO stage, activation checkpointing and micro-batch: what the user fixed is kept, the rest is
chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import microbatch_candidates, most_sequences, rows_per_rank
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.memory import MemoryEstimate, estimate

# Cheapest first: ZeRO-2 adds traffic only with accumulation, checkpointing a third of the FLOPs,
# ZeRO-3 half as much traffic again and hooks on every module.
CHEAPEST_FIRST = ((1, False), (2, False), (1, True), (2, True), (3, False), (3, True))
STAGE_0 = (
    (0, False),
    (0, True),
)  # used only if the user asks for it, or did when the run was saved
CAP_WITHOUT_LIMIT = 8  # sequences per pass if memory is not known


@dataclass(frozen=True)
class Choice:
    """One way to run a step, and what it needs."""

    zero_stage: int
    activation_checkpointing: bool
    micro_batch: int  # sequences per rank and pass
    memory: MemoryEstimate

    @property
    def words(self) -> dict[str, str]:
        """The choice as overrides: key → value."""
        return {
            "train.zero_stage": str(self.zero_stage),
            "train.activation_checkpointing": str(self.activation_checkpointing).lower(),
            "train.micro_batch": str(self.micro_batch),
        }


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint of a run that is planned again."""

    step: int
    zero_stage: int
    stages: tuple[int, ...]  # that can load it


def choose(
    config: RunConfig, usable: int | None, experience: Experience = NONE, saved: Saved | None = None
) -> Choice | None:
    """The cheapest choice within `usable` bytes per rank, with the largest micro-batch; None if
    nothing fits.

    `experience` keeps a micro-batch chosen here (but not one given by the user) below what has
    failed before. A stage that is chosen here can load what is `saved`.
    """
    found = choices(config, usable, experience, saved)
    return next(
        (choice for choice in found if usable is None or choice.memory.total <= usable), None
    )


def smallest(config: RunConfig) -> Choice | None:
    """The choice that needs the least memory, whether it fits or not; None if no setting is allowed
    at all.
    """
    return min(choices(config, 0), key=lambda choice: choice.memory.total, default=None)


def choices(
    config: RunConfig, usable: int | None, experience: Experience = NONE, saved: Saved | None = None
) -> Iterator[Choice]:
    """All choices that the user's settings leave open, best first."""
    rows = rows_per_rank(config.train.global_batch, config.cluster.world_size)
    fixed = config.train.micro_batch
    cap, tried = (
        (CAP_WITHOUT_LIMIT, 1) if usable is None else (most_sequences(config.train.seq_len), None)
    )
    for zero_stage, checkpointing in _modes(config, saved):
        limit = experience.limit(zero_stage, checkpointing) if fixed == "auto" else None
        most = min(cap, limit.micro_batch) if limit else cap
        for size in microbatch_candidates(rows, most)[:tried] if fixed == "auto" else [fixed]:
            yield Choice(
                zero_stage, checkpointing, size, estimate(config, zero_stage, checkpointing, size)
            )


def possible(config: RunConfig, saved: Saved) -> bool:
    """Whether the user's settings leave a way to train that can load what is saved."""
    return bool(_modes(config, saved))


def _modes(config: RunConfig, saved: Saved | None) -> list[tuple[int, bool]]:
    train = config.train
    stages = (
        (train.zero_stage,) if train.zero_stage != "auto" else saved.stages if saved else (1, 2, 3)
    )
    # DeepSpeed refuses bf16 with fp32 accumulation at stage 0.
    allowed = optimizer(config.optim.name).zero_stages
    stage_0 = stages == (0,) and train.precision == "fp32"
    return [
        (stage, checkpointing)
        for stage, checkpointing in (STAGE_0 if stage_0 else CHEAPEST_FIRST)
        if stage in allowed
        and stage in stages
        and train.activation_checkpointing in ("auto", checkpointing)
    ]
