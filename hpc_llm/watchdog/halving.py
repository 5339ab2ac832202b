"""Successive halving (arXiv 1502.07943): which runs of a sweep are stopped at its rungs.

A run is stopped as soon as enough others are better at its rung to fill all places: no run waits
for the slowest, and which runs remain does not depend on which came first. A rung is judged among
the runs that passed the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery.look import read_each
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.runs import event_names
from hpc_llm.watchdog import census
from hpc_llm.watchdog.census import RunCache


@dataclass(frozen=True)
class RungRun:
    """A run as the rungs see it."""

    losses: Mapping[int, float]  # held-out, of the rungs that it has reached
    over: bool  # it will reach no further rung
    promoted: int = 0  # rungs that it has passed for good, even if other runs are removed


@dataclass(frozen=True)
class Stopped:
    """A run that is out. rung: counted from 0; better: how many of `of` runs were better."""

    rung: int
    loss: float
    better: int
    kept: int  # how many were to continue
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
    stopped: dict[str, Stopped] = {}
    passed: dict[str, int] = {}
    racing: Collection[str] = sorted(runs)
    for rung in range(num_rungs):
        # A run that failed or was cancelled before it got here takes no part.
        racing = [name for name in racing if rung in runs[name].losses or not runs[name].over]
        kept = max(1, math.ceil(len(racing) * keep - 1e-9))
        ranked = _ranked(runs, racing, rung)
        lost = [name for name in ranked[kept:] if runs[name].promoted <= rung]
        for name in lost:
            loss = runs[name].losses[rung]
            stopped[name] = Stopped(rung, loss, ranked.index(name), kept, len(racing))
        if len(ranked) < len(racing):
            break  # the runs of the next rung are not known yet
        racing = [name for name in ranked if name not in lost]
        passed |= dict.fromkeys(racing, rung + 1)
    return stopped, passed


def halved_sweep(path: str, record: RunRecord) -> str | None:
    """The sweep of a run that is judged at rungs."""
    return path.rpartition("/")[0] if record.config.halving.rungs else None


def record_rungs(root: Path, cache: RunCache) -> None:
    """Record which runs halving has stopped, and which have passed a rung.

    What follows from that is decided like everything else.
    """
    for sweep in sorted(cache.halving):
        paths = cache.runs_of(sweep)
        if cache.are_over(paths):
            continue
        records = dict(read_each(root, paths))
        if len(records) == len(paths):  # a rung is not judged until all its runs are known
            _record_rungs_of_sweep(records, cache)


def _record_rungs_of_sweep(records: Mapping[str, RunRecord], cache: RunCache) -> None:
    judged = {path: run for path, run in records.items() if halved_sweep(path, run)}
    if not judged:
        return
    rule = next(iter(judged.values())).config.halving
    runs = {}
    for path, record in records.items():
        # A run that was resubmitted without rungs still counts in its rung.
        if path in judged or _losses(record):
            runs[path] = _rung_run(record)
    stopped, passed = judge_rungs(runs, len(rule.rungs), rule.keep)
    for path, record in judged.items():
        if record.summary.over:
            continue
        book = record.watchdog_ledger()
        if path in stopped:
            book.write(
                event_names.HALVED,
                why=stopped[path].why,
                rung=stopped[path].rung,
                job=record.summary.address,
                after_attempt=record.summary.attempt,
            )
            cache.runs[path].state = census.NEW
        elif passed.get(path, 0) > runs[path].promoted:
            book.write(event_names.PROMOTED, rung=passed[path] - 1)


def _ranked(runs: Mapping[str, RungRun], racing: Collection[str], rung: int) -> Sequence[str]:
    """The runs at the rung, best first.

    A loss that is not finite is the worst, and ties are broken by name.
    """

    def rank(name: str) -> tuple[bool, float, str]:
        loss = runs[name].losses[rung]
        return not math.isfinite(loss), loss, name

    there = [name for name in racing if rung in runs[name].losses]
    return sorted(there, key=rank)


def _rung_run(record: RunRecord) -> RungRun:
    promoted = 0
    halved_at = math.inf
    for rung in record.story.rungs:
        if rung.name == event_names.HALVED and rung.time >= record.summary.submitted_at:
            halved_at = rung.rung
        elif rung.name == event_names.PROMOTED:
            promoted = max(promoted, rung.rung + 1)
    return RungRun(_losses(record, up_to=halved_at), record.summary.over, promoted)


def _losses(record: RunRecord, up_to: float = math.inf) -> dict[int, float]:
    """Held-out losses at the rungs that the run has reached, up to one of them."""
    losses = {}
    for rung in record.story.rungs:
        if rung.name == event_names.RUNG and rung.rung <= up_to:
            losses[rung.rung] = rung.loss
    return losses
