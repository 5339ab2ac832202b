"""Bytes that a forward pass keeps for backward, by the model's shape and attention backend."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.config import computing
from hpc_llm.config.schema import ModelConfig, RunConfig

# Inputs' worth of elements that torch's RMSNorm keeps on a CPU, where it is not fused, by the
# bytes of a number.
_RMSNORM_COPIES = {4: 2, 2: 4}
FOLDED_EXTRA = 8  # head dimensions that carry ALiBi (model.backends.folded)


def mask_elements(config: RunConfig, backend: str, micro_batch: int) -> int:
    """Numbers in attention's mask, for all layers.

    Folded and SDPA store one, FlexAttention and flash-attn none. SDPA's ALiBi is one additive
    bias [heads, s, s], and with packed documents one more for every sequence. Other masks [s,
    s] are boolean and become numbers of the compute dtype in the kernel.
    """
    model = config.model
    documents = config.data.packing == "best_fit"
    square = config.train.seq_len**2
    if backend in ("flex", "flash"):
        return 0
    if backend in ("sdpa", "blocked") and model.positions == "alibi":
        bias = model.n_heads * square
        return (1 + micro_batch) * bias if documents else bias
    if documents:
        return micro_batch * square
    return square if model.sliding_window else 0


@dataclass(frozen=True)
class Activations:
    """Bytes of one sequence."""

    kept: int  # at the loss, by all layers
    backward: int  # beside them while backward is in a layer
    layer: int  # in the last layer that backward comes to


def activation_bytes(
    model: ModelConfig,
    seq_len: int,
    compute: int,
    checkpointing: bool,
    backend: str = "sdpa",
    on_cpu: bool = False,
) -> Activations:
    """Activations of one sequence; `compute` is the bytes of a number.

    Korthikanti et al. (arXiv 2205.05198, eq. 1) count s·b·h·(34 + 5·a·s/h) bytes per layer. Without
    dropout its masks go (2·s·b·h); fused attention keeps no s² scores, only its output, which the
    34 hold already. That is (8 + 2e)·s·d elements: inputs of two norms, of attention and MLP (4),
    q, k, v (3), attention's output (1), and the input and output of GELU (2e). Other shapes: see
    below. Checkpointing keeps a layer's input and recomputes one layer at a time. Backward through
    one MLP holds its activations' gradients.
    """
    norm = _norm_width(model, compute, on_cpu)
    ffn = _ffn_width(model)
    layer = 2 * (norm + model.d_model) + _attention_width(model, backend, seq_len) + ffn
    ends = model.d_model + norm  # embedding's output and what the last norm keeps
    each = layer
    in_backward = ffn
    if checkpointing:
        each = model.d_model
        in_backward = layer + ffn
    width = compute * seq_len
    return Activations(
        kept=width * (model.n_layers * each + ends),
        backward=width * in_backward,
        layer=width * (layer + ffn),
    )


def _norm_width(model: ModelConfig, compute: int, on_cpu: bool) -> int:
    """Elements per token that a norm keeps: its input, or an fp32 copy of it."""
    if model.norm == "layernorm":
        return model.d_model * 4 // compute
    if model.norm == "rmsnorm" and on_cpu:
        return model.d_model * _RMSNORM_COPIES[compute]
    return model.d_model


def _attention_width(model: ModelConfig, backend: str, seq_len: int) -> int:
    """Elements per token that attention keeps.

    q, k, v and its output, and q, k and v before they were modified.
    """
    heads = model.n_heads
    shared = model.kv_heads
    size = model.head_size
    projected = (heads + 2 * shared) * size
    turned = (heads + shared) * size
    before = 0
    if model.positions == "rope" or model.qk_ln:
        before += turned
    if model.clip_qkv is not None:
        before += projected
    if backend == "folded":
        return before + (2 * heads + 2 * shared) * (size + FOLDED_EXTRA)
    kept = before + projected + heads * size
    if backend == "blocked":
        # Copies of all three, scaled queries, and every block's probabilities of what it sees.
        probabilities = 0
        for start, end in computing.blocks(seq_len):
            probabilities += (end - start) * end
        return kept + heads * probabilities // seq_len
    masked = model.positions == "alibi" or model.sliding_window is not None
    if backend == "sdpa" and masked and shared < heads:
        kept += 2 * heads * size  # keys and values, repeated for every head
    return kept


def _ffn_width(model: ModelConfig) -> int:
    """GELU's input and output, or SwiGLU's gate, up, silu(gate) and product."""
    if model.ffn == "swiglu":
        return 4 * model.ffn_size
    return 2 * model.ffn_size
