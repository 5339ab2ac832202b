"""A loss that jumps is detected, and the batch of a step that diverged is skipped."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

_WINDOW = 50  # earlier steps that a loss is compared with
_FEWEST = 20  # of them needed for a comparison


def data_step(step: int, skipped: Iterable[int]) -> int:
    """The order's step that optimizer step `step` (from 0) trains on; `skipped` are left out."""
    for left_out in sorted(skipped):
        if left_out <= step:
            step += 1
    return step


class SpikeRule:
    """Whether a loss jumps: by more than `threshold` nats above the median of the last steps.

    None: no loss does.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def excess(self, loss: float) -> float | None:
        """How far it is above the median, if that is too far.

        Otherwise None, and later losses are compared with this one, too.
        """
        if self._threshold is not None and len(self._losses) >= _FEWEST:
            excess = loss - statistics.median(self._losses)
            if excess > self._threshold:
                return excess
        self._losses.append(loss)
        return None
