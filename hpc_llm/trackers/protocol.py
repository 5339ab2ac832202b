"""The interface of all trackers."""

from __future__ import annotations

from typing import Protocol

Row = dict[str, float | int]  # one step's numbers; "step" is the number of optimizer steps done


class Tracker(Protocol):
    """Takes rows in the order of their steps, only on rank 0."""

    def log(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:
        """Write out what is buffered."""
