"""ZeRO 1 in bf16: a step's fp32 gradient sums, each part reduced in place to the rank whose
optimizer uses it.

DeepSpeed 0.19.8 (BF16_Optimizer) puts all sums into one buffer, rounds that to bf16, all-reduces
the bf16 numbers and copies them back twice, even with a single rank. That takes 6 bytes per
parameter and five passes over them, and makes the summation in fp32 pointless. A reduce-scatter in
fp32 sends as many bytes as an all-reduce in bf16. If worthwhile, it overlaps with the last backward
of a step (training.overlap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from hpc_llm.zero.overlap import Bucket, Overlap, buckets

_CHUNK = (
    2**18
    # elements: torch's norm of one long fp32 tensor is 0.8 % off on a CPU (85 M elements, torch
    # 2.13)
)


def install(optimizer: Any, in_last_pass: Callable[[], bool]) -> None:
    """Make `optimizer` do this, if it is a BF16_Optimizer: the engine calls its `reduce_gradients`
    if it has one.

    `in_last_pass` tells, during a backward, whether it is the last of a step.
    """
    if not isinstance(optimizer, BF16_Optimizer):
        return
    reduced = _Reduced(optimizer)
    if dist.get_world_size() > 1:
        reduced.overlap_with_backward(optimizer, in_last_pass)
    optimizer.reduce_gradients = reduced.reduce
    optimizer.get_grads_for_norm = reduced.for_norm


class _Reduced:
    """Flat fp32 gradients of one rank's optimizer."""

    def __init__(self, optimizer: BF16_Optimizer) -> None:
        # Per parameter group: all of it [elements, padded], and this rank's part, or None where a
        # part will not do: Muon's matrices span ranks.
        self._groups: list[tuple[Tensor, Tensor | None]] = [
            (whole, None if group.get("use_muon", False) else part)
            for whole, part, group in zip(
                optimizer.fp32_groups_gradients_flat,
                optimizer.fp32_groups_gradient_flat_partition,
                optimizer.optimizer.param_groups,
                strict=True,
            )
        ]
        self._sums = Sums(optimizer)
        self._wanted = [whole if part is None else part for whole, part in self._groups]
        parts = optimizer.fp32_groups_gradient_flat_partition
        self._pieces = [
            piece for part in parts for piece in (part.split(_CHUNK) if part.is_cpu else [part])
        ]
        self._norm: Tensor | None = None
        self._overlap: Overlap | None = None

    def overlap_with_backward(
        self, optimizer: BF16_Optimizer, in_last_pass: Callable[[], bool]
    ) -> None:
        order = {parameter: number for number, parameter in enumerate(optimizer.param_names)}
        found: list[Bucket] = []
        for (whole, part), group in zip(self._groups, optimizer.bf16_groups, strict=True):
            sizes = [parameter.numel() for parameter in group]
            found += buckets(whole, part, sizes, [order[parameter] for parameter in group])
        self._overlap = overlap = Overlap(found)

        def summed(parameter: Tensor) -> None:
            if in_last_pass():
                overlap.there(order[parameter])

        for parameter in (parameter for group in optimizer.bf16_groups for parameter in group):
            parameter.register_post_accumulate_grad_hook(
                summed
            )  # after the optimizer's own, which sums

    def reduce(self, **_: object) -> None:
        """Mean over ranks, and the norm of the whole gradient; after the last backward of a
        step.
        """
        self._sums.complete()
        if self._overlap is not None:
            self._overlap.finish()
            for wanted in self._wanted:
                wanted.div_(dist.get_world_size())
        square = torch.nn.utils.get_total_norm(self._pieces).square()
        if self._overlap is not None:
            dist.all_reduce(square)
        self._norm = square.sqrt()

    def for_norm(self, for_clipping: bool = False) -> Any:
        """As BF16_Optimizer.get_grads_for_norm: what has the gradient's norm, and {}; or what
        clipping scales.
        """
        if for_clipping:
            return self._wanted
        return [self._norm], {}


# -- ZeRO 1 in bf16: each gradient goes into its fp32 sum with as few bytes as there are.
#
# DeepSpeed 0.19.8 (BF16_Optimizer) clears all sums twice a step, and for every pass it makes an
# fp32 copy of each gradient and adds that: 8 bytes a parameter and step, and 18 a pass. Here the
# first pass of a step overwrites the sum (6 bytes), later ones add to it (10), and nothing is
# cleared. The sums are the same to the bit, since every bf16 number is an fp32 one.


# Elements. On a CPU torch adds bf16 to fp32 number by number (141 ms for 40 M on two cores);
# converted in pieces that stay in the cache it takes 14 ms, as a whole 140, its fp32 copy being
# fresh memory.
_PIECE = 2**18


class Sums:
    """The fp32 gradient sums of a BF16_Optimizer, in its own buffers; its hooks call what is put in
    place here.
    """

    def __init__(self, optimizer: Any) -> None:
        self._sums: list[list[Tensor]] = (
            optimizer.fp32_groups_gradients
        )  # per group and parameter, flat
        self._begun: list[list[bool]] = optimizer.fp32_groups_has_gradients
        optimizer._update_hp_grad = self._add
        optimizer.clear_hp_grads = self._forget

    @torch.no_grad()
    def complete(self) -> None:
        """Zero the sums of parameters that had no gradient in this step, which are those of an
        earlier one.
        """
        for sums, begun in zip(self._sums, self._begun, strict=True):
            for total in (total for total, has_one in zip(sums, begun, strict=True) if not has_one):
                total.zero_()

    @torch.no_grad()
    def _add(self, parameter: Any, group: int, index: int, clear_lp_grads: bool) -> None:
        if parameter.grad is None:
            return
        total = self._sums[group][index]
        gradient = parameter.grad.reshape(-1)
        if not self._begun[group][index]:
            total.copy_(gradient)
        elif total.is_cpu:
            for into, piece in zip(total.split(_PIECE), gradient.split(_PIECE), strict=True):
                into.add_(piece.to(total.dtype))
        else:
            total.add_(gradient)
        self._begun[group][index] = True
        parameter._hp_grad = total
        if clear_lp_grads:
            parameter.grad.zero_()

    def _forget(self) -> None:
        """The next gradients are a step's first."""
        for begun in self._begun:
            begun[:] = [False] * len(begun)
