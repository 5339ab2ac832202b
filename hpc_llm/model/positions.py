"""How a model knows a token's position: linear biases (ALiBi), rotation (RoPE), or a table.

ALiBi: Press et al., arXiv 2108.12409. RoPE: Su et al., arXiv 2104.09864, in the half-rotation of
Hugging Face.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each [length, head/2], fp32


def alibi_slopes(n_heads: int, bias_max: float = 8.0) -> Tensor:
    """Slope per head, [n_heads], fp32: 2^(-i·bias_max/P) for P the next power of two.

    If n_heads is not a power of two, the odd indices come first, then the even ones, cut to
    n_heads, as in MPT. Computed in integers: inside `deepspeed.zero.Init` a new float tensor is
    bf16, exact only up to 256.
    """
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = torch.pow(2.0, -torch.arange(1, power + 1).float() * bias_max / power)
    if power == n_heads:
        return slopes
    return torch.cat([slopes[1::2], slopes[::2]])[:n_heads]


@functools.cache
def slopes_on(n_heads: int, bias_max: float, device: torch.device) -> Tensor:
    """alibi_slopes, copied to `device` once.

    Each copy makes the host wait, and a buffer would be rounded to bf16.
    """
    return alibi_slopes(n_heads, bias_max).to(device)


def alibi_bias(n_heads: int, seq_len: int, bias_max: float = 8.0) -> Tensor:
    """Additive mask, [1, n_heads, seq_len, seq_len], fp32.

    -slope·distance to the past, -inf to the future.
    """
    position = torch.arange(seq_len)
    # [query, key], ≤ 0 for the past; integers, see alibi_slopes.
    distance = position[None, :] - position[:, None]
    bias = alibi_slopes(n_heads, bias_max)[:, None, None] * distance.float()
    return bias.masked_fill(distance > 0, float("-inf"))[None]


def rotation(length: int, head_size: int, theta: float, device: torch.device) -> Rotation:
    """Angles of positions 0 … length - 1: position · theta^(-2i/head_size) for i < head_size/2.

    Computed for every pass, since a buffer would be rounded to bf16 with the model.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    position = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(position, 1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x_BHSd: Tensor, angles: Rotation) -> Tensor:
    """Each pair (x[i], x[i + d/2]) rotated by the angle of its position.

    Computed in fp32, returned in x's dtype.
    """
    cos, sin = angles
    first, second = x_BHSd.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x_BHSd.dtype)


def places(length: int, documents_BS: Tensor | None, device: torch.device) -> Tensor:
    """Position of each token in its document, int64.

    [batch, length], or [length] without documents.
    """
    place_S = torch.arange(length, device=device)
    if documents_BS is None:
        return place_S
    begins_BS = documents_BS.diff(dim=1, prepend=documents_BS[:, :1] - 1) != 0
    return place_S - torch.where(begins_BS, place_S, 0).cummax(dim=1).values
