"""What every tracker does."""

from __future__ import annotations

from typing import Protocol

Row = dict[str, float | int]  # one step's numbers; "step" is the number of optimizer steps done


class Tracker(Protocol):
    """Takes rows in the order of their steps, on rank 0 alone."""

    def log(self, row: Row) -> None:
        """Keep one row."""

    def close(self) -> None:
        """Write out what is buffered."""
