"""Which backend computes attention: a table by shape, or what `train.attention` says. No torch here."""

from __future__ import annotations

from hpc_llm.config.schema import RunConfig

# Tokens up to which ALiBi is a stored bias. On a CPU folding it wins from 2048 on (benchmarks/attention.md); no GPU has
# been measured yet: there a bias of n_heads·length² soon outgrows the activations of a layer.
LONGEST_BIAS = 4096


def choose(config: RunConfig) -> str:
    """sdpa, folded, flex or flash."""
    if config.train.attention != "auto":
        return config.train.attention
    return "folded" if config.model.positions == "alibi" and config.train.seq_len > LONGEST_BIAS else "sdpa"
