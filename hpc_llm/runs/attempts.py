"""Only one attempt writes: every attempt takes its number by creating a folder, and the newest number wins."""

from __future__ import annotations

from pathlib import Path

from hpc_llm.runs.layout import RunLayout


class Fenced(Exception):
    """A newer attempt of this run exists: this one must stop without writing another byte."""


def newest(layout: RunLayout) -> int:
    """The newest attempt's number; 0 before the first."""
    return max((int(entry.name) for entry in layout.attempts.glob("[0-9]*") if entry.name.isdecimal()), default=0)


def claim(layout: RunLayout) -> int:
    """Take the next attempt number. Exclusive on any file system on which mkdir is."""
    layout.attempts.mkdir(parents=True, exist_ok=True)
    while True:
        number = newest(layout) + 1
        try:
            layout.attempt(number).mkdir()
        except FileExistsError:
            continue
        return number


class Fence:
    """Checks, before anything is written for the run, that attempt `number` is still the newest."""

    def __init__(self, layout: RunLayout, number: int) -> None:
        self.number = number
        self._successor: Path = layout.attempt(number + 1)

    def check(self) -> None:
        """Fenced once a newer attempt exists. Numbers are taken without gaps, so one look is enough."""
        if self._successor.exists():
            raise Fenced(f"attempt {self.number} is not the newest any more: {self._successor} exists")
