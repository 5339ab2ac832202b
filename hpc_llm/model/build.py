"""The model of a run, as its plan says."""

from __future__ import annotations

from typing import Protocol

from hpc_llm.config.schema import RunConfig
from hpc_llm.model.transformer import Transformer


class HowToCompute(Protocol):
    """What a plan says about the model: the same result, in more or less time and memory."""

    @property
    def activation_checkpointing(self) -> bool:
        """Whether blocks are computed again in backward."""

    @property
    def attention(self) -> str:
        """The backend (model.backends)."""

    @property
    def compile(self) -> bool:
        """Whether blocks and loss are compiled."""

    @property
    def loss_chunk(self) -> int | None:
        """Tokens whose logits exist at once; None: those of a pass."""


def build_model(config: RunConfig, plan: HowToCompute) -> Transformer:
    """The transformer of `config`, computed as `plan` says; not yet initialised."""
    model = Transformer(
        config.model,
        config.train.seq_len,
        plan.activation_checkpointing,
        plan.attention,
        plan.loss_chunk,
    )
    if plan.compile:
        model.compile_parts()
    return model
