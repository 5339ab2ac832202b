"""Only one attempt writes: each takes its number by creating a folder, and the newest wins."""

from __future__ import annotations

from hpc_llm.runs.layout import RunLayout

TRAINED_ELSEWHERE = "another process is training this run"


class Fenced(Exception):
    """A newer attempt of this run exists: this one must stop without writing another byte."""


def newest(layout: RunLayout) -> int:
    """The newest attempt's number; 0 before the first."""
    try:
        names = [entry.name for entry in layout.attempts.iterdir()]
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdecimal()), default=0)


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


def follow(layout: RunLayout, number: int) -> int:
    """Take the number after `number`, the caller's own; Fenced if another process has taken it."""
    try:
        layout.attempt(number + 1).mkdir()
    except FileExistsError:
        raise _fenced(layout, number) from None
    return number + 1


def _fenced(layout: RunLayout, number: int) -> Fenced:
    return Fenced(
        f"attempt {number} is not the newest any more: {layout.attempt(number + 1)} exists"
    )


class Fence:
    """Checks, before anything is written for the run, that attempt `number` is still the newest."""

    def __init__(self, layout: RunLayout, number: int) -> None:
        self.number = number
        self._layout = layout

    def tripped(self) -> bool:
        """Whether a newer attempt exists; OSError if that cannot be seen now.

        The folder is listed: opening it asks the server, whereas a client of a network file system
        may remember for a minute that a name was not there.
        """
        return newest(self._layout) > self.number

    def check(self) -> None:
        """Fenced once a newer attempt exists; OSError as `tripped`."""
        if self.tripped():
            raise _fenced(self._layout, self.number)
