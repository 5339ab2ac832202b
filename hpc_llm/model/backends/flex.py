"""FlexAttention: on a GPU it skips masked blocks and computes ALiBi in the kernel.

torch has no backward for it on a CPU; there, tests run only the forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.compiler import for_each_shape
from hpc_llm.model.positions import slopes_on


class Flex:
    """Masks are made once for each length, or for each pass where rows hold documents."""

    constant = None

    def __init__(self, config: ModelConfig) -> None:
        self._alibi: tuple[int, float] | None = None
        if config.positions == "alibi":
            self._alibi = (config.n_heads, config.alibi_bias_max)
        self._window = config.sliding_window
        self._masks: dict[tuple[int, torch.device], BlockMask] = {}
        self._kernel: Any = flex_attention

    def shared(
        self, constant: None, tokens_BS: Tensor, documents_BS: Tensor | None
    ) -> tuple[BlockMask, Tensor | None]:
        window = self._window
        length = tokens_BS.shape[1]
        device = tokens_BS.device

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            seen = i >= j
            if window is not None:
                seen = seen & (i - j < window)
            if documents_BS is not None:
                seen = seen & (documents_BS[b, i] == documents_BS[b, j])
            return seen

        make: Any = create_block_mask
        if device.type == "cuda":  # here, since compiled code calls `attend`
            make = compiled_block_mask()
            self._kernel = compiled()
        if documents_BS is not None:
            mask = make(visible, documents_BS.shape[0], None, length, length, device=device)
        elif (mask := self._masks.get((length, device))) is None:  # the same for every pass
            mask = self._masks[length, device] = make(
                visible, None, None, length, length, device=device
            )
        return mask, self._alibi and slopes_on(*self._alibi, device)

    def attend(
        self,
        q_BHSd: Tensor,
        k_BGSd: Tensor,
        v_BGSd: Tensor,
        shared: tuple[BlockMask, Tensor | None],
    ) -> Tensor:
        mask, slopes_H = shared
        fewer = q_BHSd.shape[1] != k_BGSd.shape[1]
        score_mod = None if slopes_H is None else biased(slopes_H)
        return self._kernel(
            q_BHSd, k_BGSd, v_BGSd, score_mod=score_mod, block_mask=mask, enable_gqa=fewer
        )


def biased(slopes_H: Tensor) -> Callable[..., Tensor]:
    """ALiBi for FlexAttention: a score, its batch, head, query and key → the score."""
    return lambda score, b, h, i, j: score + slopes_H[h] * (j - i)


@functools.cache
def compiled_block_mask() -> Any:
    """Uncompiled, making a mask holds length² booleans."""
    return torch.compile(create_block_mask, **for_each_shape())


@functools.cache
def compiled() -> Any:
    """Uncompiled, FlexAttention holds all scores."""
    return torch.compile(flex_attention, **for_each_shape())
