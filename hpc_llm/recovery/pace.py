"""When the watchdog makes its next pass: at its interval, and sooner while Slurm is acting on a run."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 1.0  # between checks whether a run has called
SOON_S = 3.0  # from a call to the first pass: Slurm needs about this long to requeue a job
GROWTH = 1.5  # of the gap before each further pass, up to the interval: a few more queries for each call


class Pace:
    """Waits between passes. last_call: see runs.attention."""

    def __init__(
        self,
        every_s: float,
        last_call: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._every_s, self._gap_s = every_s, every_s
        self._last_call, self._clock, self._sleep = last_call, clock, sleep
        self._heard = last_call()

    def wait(self) -> None:
        """Until the next pass is due."""
        due = self._clock() + self._gap_s
        self._gap_s = min(self._every_s, GROWTH * self._gap_s)
        while (left := due - self._clock()) > 0:
            if (called := self._last_call()) != self._heard:
                self._heard, self._gap_s = called, min(self._every_s, GROWTH * SOON_S)
                due = min(due, self._clock() + SOON_S)
                continue
            self._sleep(min(LOOK_S, left))
