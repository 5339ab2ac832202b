"""Sums over ranks that overlap with backward: each bucket of gradients is summed once it is whole.

A rank owns a piece of a flat buffer, so a bucket has one owner, and its sum is passed around all
ranks to it. If pieces are too small for that, and on CPUs, one reduce-scatter of all of them at the
end is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor

# torch 2.13 calls it by its new name alone without a warning; 2.11 has the old one.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

# fp32 elements. By the numbers of a usual network, not measured: 64 MiB take as long to send as to
# go around a ring of some hundred ranks.
SMALLEST_PART = 2**24
BUCKET = 2**25


@dataclass(frozen=True)
class Bucket:
    """What is summed by one call."""

    begin: Callable[[], Any]  # the call, which does not wait for its end
    parameters: list[int]  # whose gradients are in it, by their order in the model


def buckets(
    whole: Tensor, part: Tensor | None, sizes: Sequence[int], parameters: Sequence[int]
) -> Iterator[Bucket]:
    """The buckets of a flat buffer.

    whole: [elements, padded], in which the gradients of `parameters` have `sizes`.
    part: this rank's piece of it, as large as that of every other; None: all ranks want all of it.
    """
    if part is not None and not suits_one_owner(part):
        yield Bucket(partial(_reduce_scatter, part, whole, async_op=True), list(parameters))
        return
    ends = list(accumulate(sizes))
    spans = list(zip(parameters, [0, *ends[:-1]], ends, strict=True))
    own = whole.numel() if part is None else part.numel()
    for owner, first in enumerate(range(0, whole.numel(), own)):
        call = dist.all_reduce if part is None else partial(dist.reduce, dst=owner)
        for start in range(first, first + own, BUCKET):
            end = min(start + BUCKET, first + own)
            begin = partial(call, whole[start:end], async_op=True)
            yield Bucket(begin, _parameters_within(spans, start, end))


def _parameters_within(spans: Sequence[tuple[int, int, int]], start: int, end: int) -> list[int]:
    """Parameters whose gradients lie at least partly in [start, end).

    spans: of each parameter, where its gradient begins and ends.
    """
    within = []
    for parameter, first, past in spans:
        if first < end and past > start:
            within.append(parameter)
    return within


def suits_one_owner(part: Tensor) -> bool:
    """Whether sums to one owner each are no slower than a reduce-scatter.

    Gloo's take twice the bytes.
    """
    return not part.is_cpu and part.numel() >= SMALLEST_PART


class Overlap:
    """Begins each bucket once its gradients are ready.

    On all ranks in one order, as collectives must be.
    """

    def __init__(self, of_all_groups: Sequence[Bucket]) -> None:
        # Backward comes to the last parameters first.
        self._buckets = sorted(
            of_all_groups, key=lambda bucket: -min(bucket.parameters, default=-1)
        )
        self._containing: dict[int, list[int]] = {}  # parameter → numbers of its buckets
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                self._containing.setdefault(parameter, []).append(number)
        self._restart()

    def _restart(self) -> None:
        self._missing = [len(bucket.parameters) for bucket in self._buckets]
        self._works: list[Any] = []  # of the buckets that have begun, which are the first

    def gradient_ready(self, parameter: int) -> None:
        """The whole gradient of `parameter` is in the buffer."""
        for number in self._containing[parameter]:
            self._missing[number] -= 1
        while len(self._works) < len(self._buckets) and self._missing[len(self._works)] == 0:
            self._begin_next()

    def finish(self) -> None:
        """Begin what is left, and wait for all: the host on a CPU, the stream on a GPU."""
        while len(self._works) < len(self._buckets):
            self._begin_next()
        for work in self._works:
            work.wait()
        self._restart()

    def _begin_next(self) -> None:
        self._works.append(self._buckets[len(self._works)].begin())
