"""Parameters, FLOPs and checkpoint size of a model: exact counts, no estimates."""

from __future__ import annotations

from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import ModelConfig

FP32_BYTES = 4
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}


def parameter_count(model: ModelConfig) -> int:
    """Every parameter of the model. MPT-7B's shape with 50432 rows gives 6,649,286,656."""
    matrix = model.vocab_size * model.d_model
    ends = matrix + _norm(model, model.d_model)
    if not model.tied:
        ends += matrix
    return ends + _places(model) + model.n_layers * _block(model)


def _block(model: ModelConfig) -> int:
    """Parameters of one layer.

    Wqkv [d + 2·kv, d], out_proj [d, d], FFN up (SwiGLU: gate and up) [f or 2f, d] and down [d, f],
    norms.
    """
    d = model.d_model
    kv = model.kv_heads * model.head_size
    f = model.ffn_size
    up = 2 * f if model.ffn == "swiglu" else f
    rows = d + 2 * kv + d + up
    total = rows * d + d * f + 2 * _norm(model, d)
    if model.bias:
        total += rows + d
    if model.qk_ln:
        total += _norm(model, d) + _norm(model, kv)
    return total


def _norm(model: ModelConfig, width: int) -> int:
    if model.bias and model.norm != "rmsnorm":
        return 2 * width
    return width


def _places(model: ModelConfig) -> int:
    """The table of learned positions."""
    if model.positions != "learned":
        return 0
    return model.max_seq_len * model.d_model


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward per trained token: 6·N + 12·L·d·s.

    The count of PaLM (arXiv 2204.02311, appendix B) and of LLM Foundry's benchmark tables:
    attention as if it were not causal, recomputation by activation checkpointing not counted. N
    leaves out tables that are only looked up: learned positions, and the embedding if the output
    has its own matrix. With a sliding window s is at most its length.
    """
    looked_up = _places(model)
    if not model.tied:
        looked_up += model.vocab_size * model.d_model
    seen = min(seq_len, model.sliding_window or seq_len)
    return 6.0 * (parameter_count(model) - looked_up) + 12.0 * model.n_layers * model.d_model * seen


def checkpoint_bytes(parameters: int, name: str, precision: str, zero_stage: int) -> int:
    """Bytes of one checkpoint: weights, their fp32 master copy, and the optimizer's moments.

    Measured with Adam, bytes per parameter in fp32: 12.1 at stage 0, 16.1 at 1 and 2, 12.1 at 3; in
    bf16 14.1 at 1 and 2, 12.1 at 3. Stage 0 has no master copy (bf16 cannot be had there), and
    stage 3 stores nothing else of the weights.
    """
    each = FP32_BYTES * optimizer(name).moments
    if zero_stage < 3:
        each += COMPUTE_BYTES[precision]
    if zero_stage > 0:
        each += FP32_BYTES
    return parameters * each
