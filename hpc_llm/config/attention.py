"""Which backend computes attention: a table by device and shape, or what `train.attention` says. No torch here."""

from __future__ import annotations

from hpc_llm.config.schema import ModelConfig, TrainConfig

LONG = 4096  # tokens; from there on a bias of n_heads·length² outgrows the activations of a layer


def choose(model: ModelConfig, train: TrainConfig, device: str) -> str:
    """sdpa, folded, flex or flash on `device` (cuda, cpu), for sequences of train.seq_len tokens.

    No GPU has been measured yet: there the table goes by memory alone.
    """
    if train.attention != "auto":
        return train.attention
    stores_bias = model.positions == "alibi"
    return "folded" if device == "cuda" and stores_bias and train.seq_len > LONG else "sdpa"
