"""torch's scaled_dot_product_attention: on every device, with a mask only if one is needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.masks import past, together
from hpc_llm.model.positions import alibi_bias


class Sdpa:
    """ALiBi is an additive mask of n_heads·length² numbers.

    With only a window or documents the mask is boolean.
    """

    def __init__(self, config: ModelConfig, seq_len: int) -> None:
        self.constant: Tensor | None = None
        if config.positions == "alibi":
            bias_1HSS = alibi_bias(config.n_heads, seq_len, config.alibi_bias_max)
            hidden = ~past(seq_len, config.sliding_window)
            self.constant = bias_1HSS.masked_fill(hidden, float("-inf"))
        elif config.sliding_window is not None:
            self.constant = past(seq_len, config.sliding_window)[None, None]

    def shared(
        self, constant: Tensor | None, tokens_BS: Tensor, documents_BS: Tensor | None
    ) -> Tensor | None:
        length = tokens_BS.shape[1]
        mask = None if constant is None else constant[:, :, :length, :length]
        if documents_BS is None:
            return mask
        same_B1SS = together(documents_BS)
        if mask is None:
            return same_B1SS & past(length, None, tokens_BS.device)
        if mask.dtype == torch.bool:
            return same_B1SS & mask
        return mask.masked_fill(~same_B1SS, float("-inf"))

    def attend(
        self, q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, shared: Tensor | None
    ) -> Tensor:
        return causal(q_BHSd, k_BGSd, v_BGSd, shared)


def causal(
    q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Attention with `mask`, which includes the causal one, or only causal."""
    fewer = q_BHSd.shape[1] != k_BGSd.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(
            q_BHSd, k_BGSd, v_BGSd, is_causal=True, scale=scale, enable_gqa=fewer
        )
    if fewer:  # a mask and enable_gqa together leave only the slow kernel on a GPU
        repeats = q_BHSd.shape[1] // k_BGSd.shape[1]
        k_BGSd, v_BGSd = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSd, v_BGSd))
    return F.scaled_dot_product_attention(q_BHSd, k_BGSd, v_BGSd, attn_mask=mask, scale=scale)
