"""ZeRO 1 in bf16: fp32 gradient sums with as few bytes as there are, over passes and over ranks.

Over the passes of a step: DeepSpeed 0.19.8 (BF16_Optimizer) clears all sums twice a step, and for
every pass it makes an fp32 copy of each gradient and adds that: 8 bytes a parameter and step, and
18 a pass. Here the first pass of a step overwrites the sum (6 bytes), later ones add to it (10),
and nothing is cleared. The sums are the same to the bit, since every bf16 number is an fp32 one.

Over the ranks: DeepSpeed puts all sums into one buffer, rounds that to bf16, all-reduces the bf16
numbers and copies them back twice, even with a single rank. That takes 6 bytes per parameter and
five passes over them, and makes the summation in fp32 pointless. Here each part is reduced in place
to the rank whose optimizer uses it: a reduce-scatter in fp32 sends as many bytes as an all-reduce
in bf16. If worthwhile, it overlaps with the last backward of a step (zero.overlap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from hpc_llm.zero.overlap import Bucket, Overlap, buckets

# Elements. On a CPU torch adds bf16 to fp32 number by number (141 ms for 40 M on two cores);
# converted in pieces that stay in the cache it takes 14 ms, as a whole 140, its fp32 copy being
# fresh memory.
_CACHED = 2**18

# Elements. torch's norm of one long fp32 tensor is 0.8 % off on a CPU (85 M elements, torch 2.13).
_EXACT_NORM = 2**18


def install(optimizer: Any, in_last_pass: Callable[[], bool]) -> None:
    """Make `optimizer` sum gradients as above, if it is a BF16_Optimizer.

    DeepSpeed's engine calls the optimizer's `reduce_gradients` if it has one.
    in_last_pass: tells, during a backward, whether it is the last of a step.
    """
    if not isinstance(optimizer, BF16_Optimizer):
        return
    sums = Sums(optimizer)
    reduced = _Reduced(optimizer, sums)
    if dist.get_world_size() > 1:
        reduced.overlap_with_backward(optimizer, in_last_pass)
    optimizer.reduce_gradients = reduced.reduce
    optimizer.get_grads_for_norm = reduced.for_norm


class Sums:
    """The fp32 sums over the passes of a step, in a BF16_Optimizer's own buffers.

    Its hooks call what is put in place here.
    """

    def __init__(self, optimizer: Any) -> None:
        # Both per group and parameter; the sums are flat.
        self._sums: list[list[Tensor]] = optimizer.fp32_groups_gradients
        self._begun: list[list[bool]] = optimizer.fp32_groups_has_gradients
        optimizer._update_hp_grad = self._add
        optimizer.clear_hp_grads = self._forget

    @torch.no_grad()
    def complete(self) -> None:
        """Zero the sums of parameters without a gradient in this step: they are older."""
        for sums, begun in zip(self._sums, self._begun, strict=True):
            for total, has_gradient in zip(sums, begun, strict=True):
                if not has_gradient:
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
            for into, piece in zip(total.split(_CACHED), gradient.split(_CACHED), strict=True):
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


class _Reduced:
    """The mean over ranks of those sums: flat fp32 gradients of one rank's optimizer."""

    def __init__(self, optimizer: BF16_Optimizer, sums: Sums) -> None:
        self._sums = sums
        # Per parameter group: all of it [elements, padded], and this rank's part, or None where a
        # part will not do: Muon's matrices span ranks.
        self._groups: list[tuple[Tensor, Tensor | None]] = []
        for whole, part, group in zip(
            optimizer.fp32_groups_gradients_flat,
            optimizer.fp32_groups_gradient_flat_partition,
            optimizer.optimizer.param_groups,
            strict=True,
        ):
            needs_all = group.get("use_muon", False)
            self._groups.append((whole, None if needs_all else part))
        self._wanted = [whole if part is None else part for whole, part in self._groups]
        self._pieces: list[Tensor] = []  # this rank's share of the gradient, for its norm
        for part in optimizer.fp32_groups_gradient_flat_partition:
            if part.is_cpu:
                self._pieces += part.split(_EXACT_NORM)
            else:
                self._pieces.append(part)
        self._norm: Tensor | None = None
        self._overlap: Overlap | None = None

    def overlap_with_backward(
        self, optimizer: BF16_Optimizer, in_last_pass: Callable[[], bool]
    ) -> None:
        """Reduce each bucket during the last backward of a step, as its gradients are ready."""
        order = {parameter: number for number, parameter in enumerate(optimizer.param_names)}
        of_all_groups: list[Bucket] = []
        for (whole, part), group in zip(self._groups, optimizer.bf16_groups, strict=True):
            sizes = [parameter.numel() for parameter in group]
            numbers = [order[parameter] for parameter in group]
            of_all_groups += buckets(whole, part, sizes, numbers)
        overlap = Overlap(of_all_groups)
        self._overlap = overlap

        def after_sum(parameter: Tensor) -> None:
            if in_last_pass():
                overlap.gradient_ready(order[parameter])

        for group in optimizer.bf16_groups:
            for parameter in group:
                # After the optimizer's own hook, which sums.
                parameter.register_post_accumulate_grad_hook(after_sum)

    def reduce(self, **_: object) -> None:
        """Mean over ranks, and norm of the whole gradient; after the last backward of a step."""
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
        """As BF16_Optimizer.get_grads_for_norm.

        What has the norm of the gradient, and {}; or what clipping scales.
        """
        if for_clipping:
            return self._wanted
        return [self._norm], {}
