"""Successive halving (arXiv 1502.07943): which runs of a sweep are stopped at its rungs. Pure.

A run is stopped as soon as enough others are better at its rung to fill all places: no run waits
for the slowest, and which runs remain does not depend on which came first. A rung is judged among
the runs that passed the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery.look import RunRecord, ledger_for, readable
from hpc_llm.runs import event_names
from hpc_llm.watchdog.census import RunCache


@dataclass(frozen=True)
class RungRun:
    """One run. losses: held-out losses of the rungs it has reached; over: it will reach no further
    rung.

    promoted: how many rungs it has passed for good, whatever happens to the other runs'
    directories.
    """

    losses: Mapping[int, float]
    over: bool
    promoted: int = 0


@dataclass(frozen=True)
class Stopped:
    """rung: counted from 0; better: how many of `of` runs were better, when `kept` were to
    continue.
    """

    rung: int
    loss: float
    better: int
    kept: int
    of: int

    @property
    def why(self) -> str:
        return (
            f"rung {self.rung + 1}: held-out loss {self.loss:.4f}, {self.better} of {self.of} "
            "runs are better"
        )


def judge_rungs(
    runs: Mapping[str, RungRun], num_rungs: int, keep: float
) -> tuple[dict[str, Stopped], dict[str, int]]:
    """Runs that are stopped by now, and the rungs that the others have passed, by name.

    keep: the fraction of a rung's runs that continue, rounded up.
    """
    out: dict[str, Stopped] = {}
    through: dict[str, int] = {}
    racing: Collection[str] = sorted(runs)
    for rung in range(num_rungs):
        # A run that failed or was cancelled before it got here takes no part.
        racing = [name for name in racing if rung in runs[name].losses or not runs[name].over]
        kept = max(1, math.ceil(len(racing) * keep - 1e-9))
        ranked = _ranked(runs, racing, rung)
        lost = [name for name in ranked[kept:] if runs[name].promoted <= rung]
        for name in lost:
            out[name] = Stopped(
                rung, runs[name].losses[rung], ranked.index(name), kept, len(racing)
            )
        if len(ranked) < len(racing):
            break  # the runs of the next rung are not known yet
        racing = [name for name in ranked if name not in lost]
        through |= dict.fromkeys(racing, rung + 1)
    return out, through


def _ranked(runs: Mapping[str, RungRun], racing: Collection[str], rung: int) -> Sequence[str]:
    """The runs at the rung, best first; a loss that is not finite is the worst, and ties are broken
    by name.
    """
    there = [name for name in racing if rung in runs[name].losses]
    return sorted(
        there, key=lambda name: (not math.isfinite(loss := runs[name].losses[rung]), loss, name)
    )


def _halved_sweep(path: str, record: RunRecord) -> str | None:
    """The sweep of a run that is judged at rungs."""
    return path.rpartition("/")[0] if record.config.halving.rungs else None


def _halve(root: Path, known: RunCache) -> None:
    """Record which runs halving has stopped; what follows from that is decided like everything
    else.
    """
    for sweep in sorted(known.halving):
        paths = [path for path in known.runs if path.rpartition("/")[0] == sweep]
        if all(known.runs[path].state in ("ended", "complete") for path in paths):
            continue
        found = dict(readable(root, paths))
        if len(found) < len(paths):
            continue  # a rung is not judged until all its runs are known
        rules = [run.config.halving for path, run in found.items() if _halved_sweep(path, run)]
        if not rules:
            continue
        # A run that was resubmitted without rungs still counts in its rung.
        records = {
            path: run for path, run in found.items() if _halved_sweep(path, run) or _reached(run)
        }
        runs = {path: _contender(run) for path, run in records.items()}
        out, through = judge_rungs(runs, len(rules[0].rungs), rules[0].keep)
        for path, run in records.items():
            if run.facts.final is not None or run.facts.completed or not _halved_sweep(path, run):
                continue
            if path in out:
                ledger_for(run).write(event_names.HALVED, why=out[path].why, rung=out[path].rung)
                known.runs[path].state = "new"
            elif through.get(path, 0) > runs[path].promoted:
                ledger_for(run).write(event_names.PROMOTED, rung=through[path] - 1)


def _contender(record: RunRecord) -> RungRun:
    since = record.facts.submitted_at
    losses = _reached(record)
    promoted = 0
    halved_at = None
    for rung in record.story.rungs:
        if rung.name == event_names.HALVED and rung.time >= since:
            halved_at = rung.rung
        elif rung.name == event_names.PROMOTED:
            promoted = max(promoted, rung.rung + 1)
    if halved_at is not None:
        losses = {number: loss for number, loss in losses.items() if number <= halved_at}
    over = record.facts.completed or record.facts.final is not None
    return RungRun(losses, over, promoted)


def _reached(record: RunRecord) -> dict[int, float]:
    """Held-out losses at the rungs that the run has reached."""
    return {rung.rung: rung.loss for rung in record.story.rungs if rung.name == event_names.RUNG}
