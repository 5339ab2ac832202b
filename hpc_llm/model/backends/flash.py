"""FlashAttention-2's kernel for sequences of unequal length: package flash-attn, on CUDA only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.positions import slopes_on

Shared = tuple[Tensor, Tensor | None]  # boundaries of the documents of all rows, int32; slopes


class Flash:
    """Every document, or row without documents, is its own sequence: no mask is needed at all."""

    constant = None

    def __init__(self, config: ModelConfig) -> None:
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError:
            raise InputError(
                "train.attention=flash: the package flash-attn is not installed here; install it, "
                "or choose train.attention=auto"
            ) from None
        self._kernel = flash_attn_varlen_func
        self._alibi: tuple[int, float] | None = None
        if config.positions == "alibi":
            self._alibi = (config.n_heads, config.alibi_bias_max)
        self._window = (-1, -1)
        if config.sliding_window is not None:
            self._window = (config.sliding_window - 1, 0)

    def shared(self, constant: None, tokens_BS: Tensor, documents_BS: Tensor | None) -> Shared:
        slopes = self._alibi and slopes_on(*self._alibi, tokens_BS.device)
        if documents_BS is None:
            batch, length = tokens_BS.shape
            ends = torch.arange(
                0, batch * length + 1, length, dtype=torch.int32, device=tokens_BS.device
            )
            return ends, slopes
        return boundaries(documents_BS), slopes

    def attend(self, q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, shared: Shared) -> Tensor:
        ends, slopes = shared
        batch, _, length, _ = q_BHSd.shape
        # Each [batch·length, heads, head_size].
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHSd, k_BGSd, v_BGSd))
        mixed = self._kernel(
            q,
            k,
            v,
            ends,
            ends,
            length,
            length,
            causal=True,
            window_size=self._window,
            alibi_slopes=slopes,
        )
        return mixed.unflatten(0, (batch, length)).transpose(1, 2)


def boundaries(documents_BS: Tensor) -> Tensor:
    """Where the documents of all rows, laid end to end, begin, and the end of the last, int32.

    Padded to a power of two with empty documents, since a compiled block has a kernel for each
    length. The host knows their number only after the device has counted them: one synchronisation
    per pass.
    """
    begins_BS = documents_BS.diff(dim=1, prepend=documents_BS[:, :1] - 1) != 0
    starts = begins_BS.flatten().nonzero().flatten().int()
    padding = (1 << len(starts).bit_length()) - len(starts)
    return F.pad(starts, (0, padding), value=documents_BS.numel())
