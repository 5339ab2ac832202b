"""Which backend computes attention: a table by shape, or what `train.attention` says. No torch here."""

from __future__ import annotations

from hpc_llm.config.schema import RunConfig

# Tokens up to which ALiBi is a stored bias. Beyond, n_heads·length² numbers outgrow a layer's activations; on a CPU
# folding it is then no slower (benchmarks/attention.md), on a GPU neither has been measured yet.
LONGEST_BIAS = 4096
# Tokens up to which a CPU keeps the scores: twice as fast in bf16 and no slower in fp32 (benchmarks/attention.md).
LONGEST_SCORES = 2048
BLOCKS = 4
SMALLEST_BLOCK = 128  # queries; smaller products are slower


def choose(config: RunConfig) -> str:
    """sdpa, blocked, folded, flex or flash."""
    if config.train.attention != "auto":
        return config.train.attention
    if config.cluster.device == "cpu" and config.train.seq_len <= LONGEST_SCORES:
        return "blocked"
    return "folded" if config.model.positions == "alibi" and config.train.seq_len > LONGEST_BIAS else "sdpa"


def blocks(length: int) -> list[tuple[int, int]]:
    """Where the blocks of queries begin and end whose attention is computed at a time (model.backends.blocked)."""
    size = max(SMALLEST_BLOCK, -(-length // BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]
