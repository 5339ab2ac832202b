"""Parameters, FLOPs and checkpoint size of a model: exact counts, no estimates."""

from __future__ import annotations

from hpc_llm.config.schema import ModelConfig

# Adam keeps two fp32 moments per parameter, Lion one (arXiv 2302.06675).
MOMENTS = {"fused_adam": 2, "cpu_adam": 2, "torch_adam": 2, "fused_lion": 1}
FP32_BYTES = 4
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}


def parameter_count(model: ModelConfig) -> int:
    """Parameters of an MPT: no biases, no position embeddings (ALiBi), embedding and output tied.

    Per block: Wqkv [3d, d], out_proj [d, d], up_proj [e·d, d], down_proj [d, e·d] and two norm weights [d];
    then one norm at the end. MPT-7B's shape with 50432 rows gives 6,649,286,656.
    """
    d = model.d_model
    block = (4 + 2 * model.expansion_ratio) * d * d + 2 * d
    return model.vocab_size * d + model.n_layers * block + d


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward per trained token: 6·N + 12·L·d·s.

    The count of PaLM (arXiv 2204.02311, appendix B) and of LLM Foundry's benchmark tables: the tied embedding
    once, attention as if it were not causal, recomputation by activation checkpointing not counted.
    """
    return 6.0 * parameter_count(model) + 12.0 * model.n_layers * model.d_model * seq_len


def checkpoint_bytes(parameters: int, optimizer: str, precision: str) -> int:
    """Bytes of one checkpoint: weights, their fp32 master copy in bf16 runs, and the optimizer's moments."""
    master = FP32_BYTES if precision == "bf16" else 0
    return parameters * (COMPUTE_BYTES[precision] + master + FP32_BYTES * MOMENTS[optimizer])
