"""ALiBi in extra head dimensions: the plain causal kernel computes it, and no bias is stored.

Under a causal softmax -slope·(i - j) equals slope·j up to a constant of the row, which cancels.
slope·j is a product of a number of the query and one of the key, (slope/scale)·j, in extra
dimensions of both. bf16 has 8 bits, so the position is split as 256·high + low, exact up to 65,536,
and the slope into three parts, 24 bits; products of bf16 numbers are exact in the kernel's fp32
sum. That makes six dimensions, padded to eight with zeros for the tensor cores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends.sdpa import causal
from hpc_llm.model.masks import past, together
from hpc_llm.model.positions import slopes_on

EXTRA = 8  # dimensions added to each head
# For queries [n_heads, EXTRA], for keys [length, EXTRA], and a mask.
Shared = tuple[Tensor, Tensor, Tensor | None]


class Folded:
    constant = None

    def __init__(self, config: ModelConfig) -> None:
        self._heads = config.n_heads
        self._bias_max = config.alibi_bias_max
        self._window = config.sliding_window
        self._scale = config.head_size**-0.5

    def shared(self, constant: None, tokens_BS: Tensor, documents_BS: Tensor | None) -> Shared:
        length = tokens_BS.shape[1]
        device = tokens_BS.device
        slopes_H1 = slopes_on(self._heads, self._bias_max, device)[:, None] / self._scale
        high = slopes_H1.bfloat16().float()
        middle = (slopes_H1 - high).bfloat16().float()
        low = (slopes_H1 - high - middle).bfloat16().float()
        queries_HE = F.pad(torch.cat([high, middle, low] * 2, dim=1), (0, EXTRA - 6))
        place_S1 = torch.arange(length, device=device)[:, None]
        hundreds = place_S1 // 256 * 256
        units = place_S1 % 256
        keys_SE = F.pad(torch.cat([hundreds] * 3 + [units] * 3, dim=1).float(), (0, EXTRA - 6))
        mask = None
        if documents_BS is not None:
            mask = past(length, self._window, device) & together(documents_BS)
        elif self._window is not None:
            mask = past(length, self._window, device)
        return queries_HE, keys_SE, mask

    def attend(self, q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, shared: Shared) -> Tensor:
        queries_HE, keys_SE, mask = shared
        more_q = queries_HE[None, :, None].to(q_BHSd.dtype).expand(*q_BHSd.shape[:3], -1)
        more_k = keys_SE.to(k_BGSd.dtype).expand(*k_BGSd.shape[:3], -1)
        q = torch.cat([q_BHSd, more_q], dim=-1)
        k = torch.cat([k_BGSd, more_k], dim=-1)
        v = F.pad(v_BGSd, (0, EXTRA))  # the fastest kernels want one head size for all three
        return causal(q, k, v, mask, self._scale)[..., : v_BGSd.shape[-1]]
