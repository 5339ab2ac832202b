"""Rules on the model's shape and on how its step is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hpc_llm.config.computing import LARGEST_FLASH_HEAD, LONGEST_FOLDED, SMALLEST_FLEX_HEAD
from hpc_llm.config.schema import ModelConfig, RunConfig

_DEFAULT = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
# key → the setting without which it has no effect
_NEEDS = {"alibi_bias_max": ("positions", "alibi"), "rope_theta": ("positions", "rope")}


def problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with them that can be seen from the configuration alone."""
    yield from _shapes(config.model)
    yield from _without_effect(config)
    yield from _attention(config)


def _shapes(model: ModelConfig) -> Iterator[str]:
    if min(model.d_model, model.n_heads, model.kv_heads) <= 0:
        return
    if model.d_model % model.n_heads:
        yield (
            f"model.n_heads={model.n_heads}: a divisor of model.d_model={model.d_model} is expected"
        )
    elif model.positions == "rope" and model.head_size % 2:
        yield (
            "model.positions=rope: rotates pairs, so a head needs an even size, not "
            f"{model.head_size} (model.d_model={model.d_model} ÷ model.n_heads={model.n_heads})"
        )
    if model.n_heads % model.kv_heads:
        yield (
            f"model.n_kv_heads={model.n_kv_heads}: a divisor of model.n_heads={model.n_heads} "
            "is expected, or null"
        )


def _without_effect(config: RunConfig) -> Iterator[str]:
    model = config.model
    train = config.train
    for key, (other, needed) in _NEEDS.items():
        if getattr(model, key) != _DEFAULT[key] and getattr(model, other) != needed:
            yield (
                f"model.{key}={getattr(model, key):g}: has an effect with model.{other}={needed} "
                "alone"
            )
    if model.d_ffn is not None and model.expansion_ratio != _DEFAULT["expansion_ratio"]:
        yield (
            f"model.expansion_ratio={model.expansion_ratio}: has no effect beside "
            f"model.d_ffn={model.d_ffn}"
        )
    if model.norm == "layernorm" and train.precision == "fp32":
        yield (
            "model.norm=layernorm: has an effect with train.precision=bf16 alone; in fp32 it is "
            "model.norm=low_precision_layernorm"
        )
    if model.sliding_window is not None and model.sliding_window >= train.seq_len:
        yield (
            f"model.sliding_window={model.sliding_window}: has no effect on "
            f"train.seq_len={train.seq_len}; give fewer tokens, or null"
        )
    rows = -(-train.global_batch // max(1, config.cluster.world_size))
    largest_pass = train.seq_len * (
        rows if train.micro_batch == "auto" else min(rows, train.micro_batch)
    )
    if isinstance(train.loss_chunk, int) and train.loss_chunk >= largest_pass:
        yield (
            f"train.loss_chunk={train.loss_chunk}: has no effect on {largest_pass} tokens, a "
            "whole pass of a rank; give fewer, or null"
        )


def _attention(config: RunConfig) -> Iterator[str]:
    wanted = config.train.attention
    device = config.cluster.device
    if wanted == "folded" and config.model.positions != "alibi":
        yield (
            "train.attention=folded: folds ALiBi into the heads, and "
            f"model.positions={config.model.positions}; use train.attention=auto"
        )
    if wanted in ("flex", "flash") and device == "cpu":
        yield (
            f"train.attention={wanted}: needs a GPU to train, and cluster.device=cpu; use "
            "blocked, folded or auto"
        )
    size = config.model.d_model // max(1, config.model.n_heads)
    if wanted == "flex" and 0 < size < SMALLEST_FLEX_HEAD:
        yield (
            f"train.attention=flex: has no kernel for heads of {size} (model.d_model ÷ "
            f"model.n_heads), only from {SMALLEST_FLEX_HEAD} on; use train.attention=auto"
        )
    if wanted == "flash" and size > LARGEST_FLASH_HEAD:
        yield (
            f"train.attention=flash: has no kernel for heads of {size} (model.d_model ÷ "
            f"model.n_heads), only up to {LARGEST_FLASH_HEAD}; use train.attention=auto"
        )
    if (
        wanted == "folded"
        and config.train.precision == "bf16"
        and config.train.seq_len > LONGEST_FOLDED
    ):
        yield (
            f"train.attention=folded: is exact in bf16 up to {LONGEST_FOLDED} tokens, and "
            f"train.seq_len={config.train.seq_len}; use train.attention=flex"
        )
    if wanted == "flash" and config.train.precision == "fp32":
        yield (
            "train.attention=flash: flash-attn computes in bf16 alone, and train.precision=fp32; "
            "use train.attention=auto"
        )
