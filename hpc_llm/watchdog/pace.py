"""When the watchdog makes its next pass: at its interval, and sooner while Slurm acts on a run."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 1.0  # between checks whether a run has called
SOON_S = 3.0  # from a call to the first pass: Slurm needs about this long to requeue a job
# Of the gap before each further pass, up to the interval: a few more queries for each call.
GROWTH = 1.5


class Pace:
    """Waits between passes. last_call: see runs.wake."""

    def __init__(
        self,
        every_s: float,
        last_call: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._every_s = every_s
        self._gap_s = every_s
        self._last_call = last_call
        self._clock = clock
        self._sleep = sleep
        self._heard = last_call()

    def wait(self) -> None:
        """Until the next pass is due."""
        due = self._clock() + self._gap_s
        self._gap_s = min(self._every_s, GROWTH * self._gap_s)
        while (left_s := due - self._clock()) > 0:
            call = self._last_call()
            if call == self._heard:
                self._sleep(min(LOOK_S, left_s))
                continue
            self._heard = call
            self._gap_s = min(self._every_s, GROWTH * SOON_S)
            due = min(due, self._clock() + SOON_S)
