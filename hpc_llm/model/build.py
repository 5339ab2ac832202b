"""The model of a run, on the machine where it runs."""

from __future__ import annotations

from hpc_llm.config import attention
from hpc_llm.config.schema import RunConfig
from hpc_llm.model.transformer import Transformer


def build_model(config: RunConfig, activation_checkpointing: bool, device: str) -> Transformer:
    """The transformer of `config` for `device` (cuda, cpu), its weights not yet initialised."""
    train = config.train
    backend = attention.choose(config.model, train, device)
    model = Transformer(config.model, train.seq_len, activation_checkpointing, backend, train.loss_chunk)
    if train.compile:
        model.compile_blocks()
    return model
