"""Self-attention: projections around a backend that mixes the values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends.protocol import Backend
from hpc_llm.model.linear import Linear
from hpc_llm.model.norms import make_norm
from hpc_llm.model.positions import Rotation, rotate


class Attention(nn.Module):
    """One fused projection for queries, keys and values.

    Several query heads may share a head of keys and values.
    """

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self._backend = backend
        self._head = config.head_size
        self._clip = config.clip_qkv
        self._widths = [config.d_model, *[config.kv_heads * config.head_size] * 2]
        self.Wqkv = Linear(config.d_model, sum(self._widths), bias=config.bias)
        self.out_proj = Linear(config.d_model, config.d_model, bias=config.bias)
        self.q_ln: nn.Module | None = None
        self.k_ln: nn.Module | None = None
        if config.qk_ln:
            self.q_ln = make_norm(config, self._widths[0])
            self.k_ln = make_norm(config, self._widths[1])

    def forward(self, x_BSD: Tensor, shared: Any, angles: Rotation | None) -> Tensor:
        """[batch, length, d_model] → the same shape.

        shared: the backend's state for this pass. angles: given if positions are rotations.
        """
        qkv = self.Wqkv(x_BSD)
        if self._clip is not None:
            qkv = qkv.clamp(-self._clip, self._clip)
        q, k, v = qkv.split(self._widths, dim=-1)
        if self.q_ln is not None and self.k_ln is not None:
            q = self.q_ln(q)
            k = self.k_ln(k)
        # Each [batch, heads, length, head_size].
        q, k, v = (x.unflatten(-1, (-1, self._head)).transpose(1, 2) for x in (q, k, v))
        if angles is not None:
            q = rotate(q, angles)
            k = rotate(k, angles)
        mixed = self._backend.attend(q, k, v, shared)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
