"""A row per combination, each against the baseline, and the winner with its significance: pure
functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.results import Result
from hpc_llm.sweeps.significance import FEWEST_SEEDS, LEVEL, holm, welch
from hpc_llm.sweeps.varied import Combination, short

MEASURES = (
    "heldout_loss",
    "final_loss",
)  # the deciding measure is the first that every complete run has


@dataclass(frozen=True)
class Spread:
    """Mean over seeds; deviation: of the sample (n − 1), None for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Row:
    """One combination. Losses only of complete runs; None if there are none, or it was not
    measured.
    """

    values: dict[str, Any]
    label: str
    complete: int
    runs: int
    heldout_loss: Spread | None
    best_loss: Spread | None
    final_loss: Spread | None
    tokens_per_second: float | None  # mean over complete runs
    gpu_hours: float  # of all runs, unfinished ones included
    p_baseline: (
        float | None
    )  # Welch, corrected after Holm; None: the baseline itself, or too few seeds


@dataclass(frozen=True)
class Verdict:
    """Which combination has the lowest mean loss, and whether that is more than chance."""

    winner: str | None
    significant: bool
    why: str


def measure_of(combinations: Sequence[Combination]) -> str:
    """The deciding measure: held-out loss, or training loss if some complete run has no held-out
    loss.
    """
    complete = [run for one in combinations for run in one.complete]
    return next(
        (name for name in MEASURES if all(getattr(run, name) is not None for run in complete)),
        MEASURES[0],
    )


def rows(combinations: Sequence[Combination], measure: str, baseline: Combination) -> list[Row]:
    """Rows in the order of `combinations`, with p of each against the baseline."""
    others = [one for one in combinations if one is not baseline]
    tests = [welch(_values(one, measure), _values(baseline, measure)) for one in others]
    known = [(one, p) for one, p in zip(others, tests, strict=True) if p is not None]
    corrected = holm([p for _, p in known])
    p_of = {one.label: p for (one, _), p in zip(known, corrected, strict=True)}
    return [_row(one, p_of.get(one.label)) for one in combinations]


def verdict(combinations: Sequence[Combination], measure: str) -> Verdict:
    """The winner is significant if it beats each of the others at the 5 % level, corrected for
    their number.
    """
    there = [one for one in combinations if _values(one, measure)]
    if not there:
        return Verdict(None, False, "no run is complete")
    best, *others = sorted(there, key=lambda one: statistics.fmean(_values(one, measure)))
    missing = len(combinations) - len(there)
    if not others:
        reason = (
            f"{missing} others have no complete run"
            if missing
            else "there is nothing to compare it with"
        )
        return Verdict(best.label, False, reason)
    tests = [welch(_values(best, measure), _values(other, measure)) for other in others]
    if None in tests:
        short_of_seeds = [one.label for one in there if len(_values(one, measure)) < FEWEST_SEEDS]
        why = (
            f"too few seeds to tell: a test needs {FEWEST_SEEDS} complete runs a combination "
            "(three tell more)"
        )
        return Verdict(best.label, False, f"{why}; short of that: {_some(short_of_seeds)}")
    corrected = holm([p for p in tests if p is not None])
    if close := [other.label for other, p in zip(others, corrected, strict=True) if p > LEVEL]:
        return Verdict(best.label, False, f"seeds alone may explain its lead over {_some(close)}")
    if missing:
        return Verdict(best.label, False, f"{missing} others have no complete run")
    worst = max(corrected)
    return Verdict(
        best.label,
        True,
        f"lower than each other, p ≤ {worst:.2g} (Welch's t-test, corrected after Holm)",
    )


def choose_baseline(combinations: Sequence[Combination], words: str | None) -> Combination:
    """The combination that `optim=fused_adam,optim.lr=1e-4` names, or the first; InputError unless
    it names one.
    """
    if words is None:
        return combinations[0]
    wanted = dict(word.partition("=")[::2] for word in words.split(","))
    known = {short(key): key for one in combinations for key in one.values}
    if unknown := [key for key in wanted if short(key) not in known]:
        raise InputError(
            f"--baseline {words}: {unknown[0]} is not swept here; swept: "
            f"{', '.join(known) or 'nothing'}"
        )
    found = [
        one
        for one in combinations
        if all(_same(one.values[known[short(key)]], value) for key, value in wanted.items())
    ]
    if len(found) != 1:
        labels = "; ".join(one.label for one in (found or combinations)[:8])
        raise InputError(
            f"--baseline {words}: {len(found)} combinations are so, one is needed: {labels}"
        )
    return found[0]


def _same(value: Any, word: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(word) == value
        except ValueError:
            return False
    return str(value) == word or (value is None and word == "null") or str(value).lower() == word


def _row(one: Combination, p_baseline: float | None) -> Row:
    speeds = [run.tokens_per_second for run in one.complete if run.tokens_per_second is not None]
    return Row(
        values=one.values,
        label=one.label,
        complete=len(one.complete),
        runs=len(one.complete) + len(one.unfinished),
        heldout_loss=_spread(_values(one, "heldout_loss")),
        best_loss=_spread(_values(one, "best_loss")),
        final_loss=_spread(_values(one, "final_loss")),
        tokens_per_second=statistics.fmean(speeds) if speeds else None,
        gpu_hours=sum(run.gpu_hours for run in one.complete + one.unfinished),
        p_baseline=p_baseline,
    )


def _values(one: Combination, measure: str) -> list[float]:
    return [value for run in one.complete if (value := _loss(run, measure)) is not None]


def _loss(run: Result, measure: str) -> float | None:
    value: float | None = getattr(run, measure)
    return value


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _some(labels: Sequence[str]) -> str:
    return "; ".join(labels[:4]) + (f"; and {len(labels) - 4} more" if len(labels) > 4 else "")
