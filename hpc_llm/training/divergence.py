"""A loss that is not finite, or jumps: how it is detected, where it shows first, and how its batch
is skipped.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

_WINDOW = 50  # earlier steps that a loss is compared with
_FEWEST = 20  # of them needed for a comparison


def data_step(step: int, skipped: Iterable[int]) -> int:
    """The order's step that optimizer step `step` (from 0) trains on, when those in `skipped` are
    left out.
    """
    for left_out in sorted(skipped):
        if left_out <= step:
            step += 1
    return step


class SpikeRule:
    """Whether a loss jumps: by more than `threshold` nats above the median of the last steps. None:
    never.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def leap(self, loss: float) -> float | None:
        """By how much, if it is too much; else the loss joins those with which later ones are
        compared.
        """
        if self._threshold is not None and len(self._losses) >= _FEWEST:
            above = loss - statistics.median(self._losses)
            if above > self._threshold:
                return above
        self._losses.append(loss)
        return None
