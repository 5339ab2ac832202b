"""How long a rank's forward pass takes, measured without waiting for the device."""

from __future__ import annotations

import time
from types import TracebackType

import torch


class ForwardClock:
    """Times a forward pass as a context manager, on a GPU by events."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._newest_s = 0.0
        self._begun = 0.0
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            self._pairs.append(
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            )
            self._pairs[-1][0].record()
        else:
            self._begun = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cuda:
            self._pairs[-1][1].record()
        else:
            self._newest_s = time.perf_counter() - self._begun

    def newest_us(self) -> int:
        """Microseconds of the newest pass that is known to be over; 0 before the first."""
        while self._pairs and self._pairs[0][1].query():
            begin, end = self._pairs.pop(0)
            self._newest_s = begin.elapsed_time(end) / 1e3
        return round(self._newest_s * 1e6)
