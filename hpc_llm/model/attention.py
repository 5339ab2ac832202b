"""Causal attention with linear biases (ALiBi, Press et al., arXiv 2108.12409)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig


def alibi_slopes(n_heads: int, bias_max: float = 8.0) -> Tensor:
    """Slope per head, [n_heads], fp32: 2^(-i·bias_max/P) for P the next power of two.

    Where n_heads is no power of two the odd places come first, then the even ones, cut to n_heads,
    as MPT does it.
    """
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = torch.pow(2.0, -torch.arange(1, power + 1, dtype=torch.float32) * bias_max / power)
    return slopes if power == n_heads else torch.cat([slopes[1::2], slopes[::2]])[:n_heads]


def alibi_bias(n_heads: int, seq_len: int, bias_max: float = 8.0) -> Tensor:
    """Additive mask, [1, n_heads, seq_len, seq_len], fp32: -slope·distance to the past, -inf to the future."""
    position = torch.arange(seq_len, dtype=torch.float32)
    distance = position[None, :] - position[:, None]  # [query, key], ≤ 0 for the past
    bias = alibi_slopes(n_heads, bias_max)[:, None, None] * distance
    return bias.masked_fill(distance > 0, float("-inf"))[None]


def apart(bias_1HSS: Tensor, documents_BS: Tensor) -> Tensor:
    """The bias of each sequence, [batch, n_heads, length, length], -inf between different documents.

    ALiBi knows distances alone, so positions begin anew with each document by themselves.
    """
    other_B1SS = (documents_BS[:, :, None] != documents_BS[:, None, :])[:, None]
    return bias_1HSS.masked_fill(other_B1SS, float("-inf"))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value, no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.clip_qkv = config.n_heads, config.clip_qkv
        self.Wqkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BSD: Tensor, bias_BHSS: Tensor) -> Tensor:
        """`bias_BHSS` is added to the scores; one for all sequences has a batch dimension of 1."""
        batch, seq_len, d_model = x_BSD.shape
        qkv = self.Wqkv(x_BSD)
        if self.clip_qkv is not None:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = qkv.view(batch, seq_len, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # each [B, H, S, head]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHSS)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, seq_len, d_model))
