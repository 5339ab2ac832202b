"""ZeRO stage, checkpointing and micro-batch: what the user fixed is kept, the rest is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import microbatch_candidates, most_sequences, rows_per_rank
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.memory import MemoryEstimate, estimate
from hpc_llm.planning.step_mode import CHEAPEST_FIRST, STAGE_0, StepMode

CAP_WITHOUT_LIMIT = 8  # sequences per pass if memory is not known
ZERO_STAGES = (1, 2, 3)  # to choose among


@dataclass(frozen=True)
class Choice:
    """One way to run a step, and what it needs."""

    mode: StepMode
    micro_batch: int  # sequences per rank and pass
    memory: MemoryEstimate

    @property
    def settings(self) -> dict[str, int | bool]:
        """The choice as keys of `train`."""
        return {
            "zero_stage": self.mode.zero_stage,
            "activation_checkpointing": self.mode.activation_checkpointing,
            "micro_batch": self.micro_batch,
        }

    def override(self, key: str) -> str:
        """The override that gives `key` of `train` its chosen value."""
        return f"train.{key}={str(self.settings[key]).lower()}"


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint of a run that is planned again."""

    step: int
    zero_stage: int
    stages: tuple[int, ...]  # that can load it


def choose(
    config: RunConfig, usable: int | None, experience: Experience = NONE, saved: Saved | None = None
) -> Choice | None:
    """The cheapest choice within `usable` bytes per rank, with the largest micro-batch.

    None if nothing fits. `experience` keeps a micro-batch chosen here (but not one given by the
    user) below what has failed before. A stage that is chosen here can load what is `saved`.
    """
    for choice in choices(config, usable, experience, saved):
        if usable is None or choice.memory.total <= usable:
            return choice
    return None


def smallest(config: RunConfig) -> Choice | None:
    """The choice that needs the least memory, fitting or not; None if no setting is allowed."""
    return min(choices(config, 0), key=lambda choice: choice.memory.total, default=None)


def choices(
    config: RunConfig, usable: int | None, experience: Experience = NONE, saved: Saved | None = None
) -> Iterator[Choice]:
    """All choices that the user's settings leave open, best first."""
    for mode in _modes(config, saved):
        for size in _micro_batches(config, usable, experience, mode):
            yield Choice(mode, size, estimate(config, mode, size))


def possible(config: RunConfig, saved: Saved) -> bool:
    """Whether the user's settings leave a way to train that can load what is saved."""
    return bool(_modes(config, saved))


def _micro_batches(
    config: RunConfig, usable: int | None, experience: Experience, mode: StepMode
) -> list[int]:
    """Sequences per rank and pass, best first; the first alone where memory is not known."""
    given = config.train.micro_batch
    if given != "auto":
        return [given]
    cap = CAP_WITHOUT_LIMIT
    if usable is not None:
        cap = most_sequences(config.train.seq_len)
    limit = experience.limit(mode)
    if limit is not None:
        cap = min(cap, limit.micro_batch)
    rows = rows_per_rank(config.train.global_batch, config.cluster.world_size)
    sizes = microbatch_candidates(rows, cap)
    return sizes[:1] if usable is None else sizes


def _modes(config: RunConfig, saved: Saved | None) -> list[StepMode]:
    """What ZeRO, the optimizer, the user and a checkpoint leave open, cheapest first."""
    train = config.train
    stages = _stages(config, saved)
    modes = CHEAPEST_FIRST
    # DeepSpeed refuses bf16 with fp32 accumulation at stage 0.
    if stages == (0,) and train.precision == "fp32":
        modes = STAGE_0
    allowed = set(stages) & set(optimizer(config.optim.name).zero_stages)
    wanted = train.activation_checkpointing
    return [
        mode
        for mode in modes
        if mode.zero_stage in allowed and wanted in ("auto", mode.activation_checkpointing)
    ]


def _stages(config: RunConfig, saved: Saved | None) -> tuple[int, ...]:
    given = config.train.zero_stage
    if given != "auto":
        return (given,)
    return ZERO_STAGES if saved is None else saved.stages
