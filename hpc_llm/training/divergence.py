"""A loss that is no number, or leaps: what shows it, where it shows first, and how the data goes on without it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_WINDOW = 50  # steps that a loss is compared with
_FEWEST = 20  # of them, before it is


def data_step(step: int, skipped: Iterable[int]) -> int:
    """What optimizer step `step` (from 0) trains on: the order's step of that number, had it none of `skipped`."""
    for left_out in sorted(skipped):
        if left_out <= step:
            step += 1
    return step


class SpikeRule:
    """Whether a loss leaps: by more than `threshold` nats above the median of the last steps. None: never."""

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def leap(self, loss: float) -> float | None:
        """By how much, where it is too much; else the loss joins those that the next ones are compared with."""
        if self._threshold is not None and len(self._losses) >= _FEWEST:
            above = loss - statistics.median(self._losses)
            if above > self._threshold:
                return above
        self._losses.append(loss)
        return None


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose outputs are not finite in forward passes within, in order; the first is the origin."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return look

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
