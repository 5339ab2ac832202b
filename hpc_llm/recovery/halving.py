"""Successive halving (arXiv 1502.07943): which runs of a sweep are stopped at its rungs. Pure.

A run is stopped as soon as enough others are better at its rung to fill all places: no run waits for the slowest, and
which runs remain does not depend on which came first. A rung is judged among the runs that passed the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One run. losses: held-out losses of the rungs it has reached; over: it will reach no further rung.

    promoted: how many rungs it has passed for good, whatever happens to the other runs' directories.
    """

    losses: Mapping[int, float]
    over: bool
    promoted: int = 0


@dataclass(frozen=True)
class Loser:
    """rung: counted from 0; better: how many of `of` runs were better, when `kept` were to continue."""

    rung: int
    loss: float
    better: int
    kept: int
    of: int

    @property
    def why(self) -> str:
        return f"rung {self.rung + 1}: held-out loss {self.loss:.4f}, {self.better} of {self.of} runs are better"


def judge(runs: Mapping[str, Contender], num_rungs: int, keep: float) -> tuple[dict[str, Loser], dict[str, int]]:
    """Runs that are stopped by now, and the rungs that the others have passed, by name.

    keep: the fraction of a rung's runs that continue, rounded up.
    """
    out: dict[str, Loser] = {}
    through: dict[str, int] = {}
    racing: Collection[str] = sorted(runs)
    for rung in range(num_rungs):
        # A run that failed or was cancelled before it got here takes no part.
        racing = [name for name in racing if rung in runs[name].losses or not runs[name].over]
        kept = max(1, math.ceil(len(racing) * keep - 1e-9))
        ranked = _ranked(runs, racing, rung)
        lost = [name for name in ranked[kept:] if runs[name].promoted <= rung]
        for name in lost:
            out[name] = Loser(rung, runs[name].losses[rung], ranked.index(name), kept, len(racing))
        if len(ranked) < len(racing):
            break  # the runs of the next rung are not known yet
        racing = [name for name in ranked if name not in lost]
        through |= dict.fromkeys(racing, rung + 1)
    return out, through


def _ranked(runs: Mapping[str, Contender], racing: Collection[str], rung: int) -> Sequence[str]:
    """The runs at the rung, best first; a loss that is not finite is the worst, and ties are broken by name."""
    there = [name for name in racing if rung in runs[name].losses]
    return sorted(there, key=lambda name: (not math.isfinite(loss := runs[name].losses[rung]), loss, name))
