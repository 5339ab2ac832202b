"""Attention as its formula says it, in fp64: what every backend is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.positions import alibi_slopes


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, config: ModelConfig, documents: Tensor | None
) -> Tensor:
    """softmax(q·kᵀ/√head - slope·distance)·v over what is visible; q [B, H, S, d], k and v with
    fewer heads.
    """
    q = q.double()
    k = k.double()
    v = v.double()
    repeats = q.shape[1] // k.shape[1]
    length = q.shape[2]
    k, v = (
        torch.stack([x[:, head // repeats] for head in range(q.shape[1])], dim=1) for x in (k, v)
    )
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    for i in range(length):
        for j in range(length):
            seen = j <= i and (config.sliding_window is None or i - j < config.sliding_window)
            if not seen:
                scores[:, :, i, j] = float("-inf")
            elif config.positions == "alibi":
                slopes = alibi_slopes(config.n_heads, config.alibi_bias_max).double()
                scores[:, :, i, j] = scores[:, :, i, j] - slopes * (i - j)
            if documents is not None:
                apart = documents[:, i] != documents[:, j]
                scores[:, :, i, j] = scores[:, :, i, j].masked_fill(apart[:, None], float("-inf"))
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
