"""How a step is computed where the user leaves it open: attention, compilation, the loss.

Chosen by measurements (benchmarks/attention.md, loss.md, training.md). No torch here.
"""

from __future__ import annotations

from hpc_llm.config.schema import RunConfig

# Tokens up to which ALiBi is a stored bias. Above, n_heads·length² numbers outgrow a layer's
# activations, and on a CPU folding is then no slower.
LONGEST_BIAS = 4096
# Tokens up to which a CPU keeps the scores: twice as fast in bf16 and no slower in fp32.
LONGEST_SCORES = 2048
SMALLEST_FLEX_HEAD = 16  # FlexAttention has no kernel for smaller ones
LARGEST_FLASH_HEAD = 256  # flash-attn 2 for larger ones
LONGEST_FOLDED = 65_536  # positions that two bf16 numbers represent exactly
BLOCKS = 4
SMALLEST_BLOCK = 128  # queries; smaller products are slower
# Tokens whose logits an eager loss on a CPU holds at once: no slower than a whole pass, in half the
# memory. Compiled, a whole pass takes no more memory than chunks.
LOSS_CHUNK_ON_CPU = 2048


def choose(config: RunConfig) -> str:
    """sdpa, blocked, folded, flex or flash."""
    model = config.model
    train = config.train
    if train.attention != "auto":
        return train.attention
    if not config.cluster.has_gpus:
        if train.seq_len <= LONGEST_SCORES:
            return "blocked"
    elif train.precision == "bf16" and model.head_size >= SMALLEST_FLEX_HEAD and _masked(config):
        return "flex"
    return "folded" if model.positions == "alibi" and train.seq_len > LONGEST_BIAS else "sdpa"


def _masked(config: RunConfig) -> bool:
    """Whether attention is more than causal.

    With ALiBi, torch's kernels take 1.4 to 1.9 times FlexAttention's time.
    """
    model = config.model
    return (
        model.positions == "alibi"
        or model.sliding_window is not None
        or config.data.packing == "best_fit"
    )


def compiles(config: RunConfig) -> bool:
    """Whether blocks and loss are compiled with torch.compile; if auto, on a GPU."""
    wanted = config.train.compile
    return config.cluster.has_gpus if wanted == "auto" else wanted


def loss_chunk(config: RunConfig) -> int | None:
    """Tokens whose logits exist at once; None: those of a whole pass."""
    wanted = config.train.loss_chunk
    if wanted == "auto":
        return None if config.cluster.has_gpus or compiles(config) else LOSS_CHUNK_ON_CPU
    return wanted


def blocks(length: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries that model.backends.blocked computes at once."""
    size = max(SMALLEST_BLOCK, -(-length // BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]
