"""Successive halving (arXiv 1502.07943): which runs of a sweep are stopped at its rungs. Pure.

A run is out as soon as as many others as may go on are better at its rung: nobody has to wait for the slowest, and
who remains does not depend on who came first. A rung is judged among those that got through the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One run. losses: held out, by rung, as far as it has come; over: it will reach no further rung.

    promoted: how many rungs it has got through for good, whatever becomes of the others' directories.
    """

    losses: Mapping[int, float]
    over: bool
    promoted: int = 0


@dataclass(frozen=True)
class Loser:
    """rung: counted from 0; better: how many were, of `of`, when `kept` might go on."""

    rung: int
    loss: float
    better: int
    kept: int
    of: int

    @property
    def why(self) -> str:
        return f"rung {self.rung + 1}: held-out loss {self.loss:.4f}, {self.better} of {self.of} runs are better"


def judge(runs: Mapping[str, Contender], num_rungs: int, keep: float) -> tuple[dict[str, Loser], dict[str, int]]:
    """Those that are out by now, and the rungs that the others have got through, by name.

    keep: the fraction of a rung's runs that go on, rounded up.
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
            break  # the next rung's field is not known yet
        racing = [name for name in ranked if name not in lost]
        through |= dict.fromkeys(racing, rung + 1)
    return out, through


def _ranked(runs: Mapping[str, Contender], racing: Collection[str], rung: int) -> Sequence[str]:
    """Those at the rung, best first; a loss that is not finite is the worst, equal ones go by name."""
    there = [name for name in racing if rung in runs[name].losses]
    return sorted(there, key=lambda name: (not math.isfinite(loss := runs[name].losses[rung]), loss, name))
