"""Why a loop ends early: a signal, which only sets a flag that the ranks agree on, or a loss that is no number."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Diverged(Exception):
    """Loss or gradient norm is not finite."""


class StopFlag:
    """Set by the first SIGTERM, SIGINT or SIGUSR2; a second SIGINT leaves at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            os._exit(128 + number)
        self.signal = number
