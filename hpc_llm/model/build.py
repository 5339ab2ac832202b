"""The model of a run, as its plan says."""

from __future__ import annotations

from hpc_llm.config.schema import RunConfig
from hpc_llm.model.transformer import Transformer


def build_model(
    config: RunConfig,
    activation_checkpointing: bool,
    attention: str,
    compiled: bool,
    loss_chunk: int | None,
) -> Transformer:
    """The transformer of `config` as its plan says to compute it; not yet initialised."""
    model = Transformer(
        config.model, config.train.seq_len, activation_checkpointing, attention, loss_chunk
    )
    if compiled:
        model.compile_parts()
    return model
