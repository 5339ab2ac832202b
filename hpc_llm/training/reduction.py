"""ZeRO 1 in bf16: a step's fp32 gradient sums, each part reduced in place to the rank whose optimizer steps with it.

DeepSpeed 0.19.8 (BF16_Optimizer) puts all sums into one buffer, rounds that to bf16, all-reduces the bf16 numbers and
copies them back twice, on a lone rank too. That is 6 bytes a parameter, five passes over them, and a gradient whose
summation in fp32 was for nothing. A reduce-scatter in fp32 sends as many bytes as an all-reduce in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

# torch 2.13 calls it by its new name alone without a warning; 2.11 has the old one.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_CHUNK = 2**18  # elements: torch's norm of one long fp32 tensor is 0.8 % off on a CPU (85 M elements, torch 2.13)


def install(optimizer: Any) -> None:
    """Have `optimizer` do so, if it is a BF16_Optimizer: the engine calls its `reduce_gradients` where it has one."""
    if not isinstance(optimizer, BF16_Optimizer):
        return
    reduced = _Reduced(optimizer)
    optimizer.reduce_gradients = reduced.reduce
    optimizer.get_grads_for_norm = reduced.for_norm


class _Reduced:
    """Flat fp32 gradients of one rank's optimizer."""

    def __init__(self, optimizer: BF16_Optimizer) -> None:
        # Per parameter group: all of it [elements, padded], this rank's part of that, and whether a part will not do:
        # Muon's matrices span ranks.
        self._groups: list[tuple[Tensor, Tensor, bool]] = [
            (whole, part, group.get("use_muon", False))
            for whole, part, group in zip(
                optimizer.fp32_groups_gradients_flat,
                optimizer.fp32_groups_gradient_flat_partition,
                optimizer.optimizer.param_groups,
                strict=True,
            )
        ]
        parts = [part for _, part, _ in self._groups]
        self._pieces = [piece for part in parts for piece in (part.split(_CHUNK) if part.is_cpu else [part])]
        self._norm: Tensor | None = None

    def reduce(self, **_: object) -> None:
        """Mean over ranks, and the norm of all of it; after the last backward of a step."""
        world_size = dist.get_world_size()
        if world_size > 1:
            for whole, part, wanted_whole in self._groups:
                if wanted_whole:
                    dist.all_reduce(whole)
                    whole.div_(world_size)
                else:
                    _reduce_scatter(part, whole)
                    part.div_(world_size)
        square = torch.nn.utils.get_total_norm(self._pieces).square()
        if world_size > 1:
            dist.all_reduce(square)
        self._norm = square.sqrt()

    def for_norm(self, for_clipping: bool = False) -> Any:
        """As BF16_Optimizer.get_grads_for_norm: what has the gradient's norm, and {}; or what clipping scales."""
        if for_clipping:
            return [whole if wanted_whole else part for whole, part, wanted_whole in self._groups]
        return [self._norm], {}
