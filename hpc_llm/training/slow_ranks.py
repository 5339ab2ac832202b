"""Ranks that compute slower than the others: every step waits for them.

The watchdog takes it as evidence against their nodes.

The forward pass is what a rank does alone (up to ZeRO 2; at 3 it waits for the others' parameters,
and nothing can be said). Every rank adds its time to the sum over ranks that each step makes
anyway, so no rank waits for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

WINDOW = 128  # steps whose median counts
IN_A_ROW = 2  # windows
FACTOR = 1.5  # times the others' usual pass
FEWEST = 3  # ranks: of two, it is not clear which one is off


class SlowRanks:
    """Forward times of all ranks over the steps → ranks that are persistently slow. Pure."""

    def __init__(self) -> None:
        self._window: list[Sequence[int]] = []
        self._behind: dict[int, int] = {}  # windows in a row

    def look(self, forward_us: Sequence[int]) -> dict[int, float]:
        """Ranks found to be slow now, with the ratio of their time to the usual one.

        Each is reported once.
        """
        if len(forward_us) < FEWEST or 0 in forward_us:
            return {}
        self._window.append(forward_us)
        if len(self._window) < WINDOW:
            return {}
        medians = [statistics.median(times) for times in zip(*self._window, strict=True)]
        self._window = []
        usual = statistics.median(medians)
        behind: dict[int, int] = {}
        reported: dict[int, float] = {}
        for rank, median in enumerate(medians):
            if median > FACTOR * usual:
                behind[rank] = self._behind.get(rank, 0) + 1
                if behind[rank] == IN_A_ROW:
                    reported[rank] = round(median / usual, 2)
        self._behind = behind
        return reported
