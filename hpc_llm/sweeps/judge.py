"""A row per combination, each against the baseline, and the winner with its significance.

Pure functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.significance import FEWEST_SEEDS, LEVEL, holm, welch
from hpc_llm.sweeps.varied import Combination, short

# The deciding measure is the first that every complete run has.
MEASURES = ("heldout_loss", "final_loss")


@dataclass(frozen=True)
class Spread:
    """Mean over seeds; deviation: of the sample (n − 1), None for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Row:
    """One combination.

    Losses are of complete runs alone; None if there are none, or it was not measured.
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
    # Welch, corrected after Holm; None: the baseline itself, or too few seeds.
    p_baseline: float | None


@dataclass(frozen=True)
class Verdict:
    """Which combination has the lowest mean loss, and whether that is more than chance."""

    winner: str | None
    significant: bool
    why: str


def measure_of(combinations: Sequence[Combination]) -> str:
    """The deciding measure: held-out loss, or training loss if a complete run has no other."""
    for measure in MEASURES:
        num_unmeasured = 0
        for combination in combinations:
            num_unmeasured += len(combination.complete) - len(_measured(combination, measure))
        if num_unmeasured == 0:
            return measure
    return MEASURES[0]


def rows(combinations: Sequence[Combination], measure: str, baseline: Combination) -> list[Row]:
    """Rows in the order of `combinations`, with p of each against the baseline."""
    reference = _measured(baseline, measure)
    labels = []
    probabilities = []
    for combination in combinations:
        if combination is baseline:
            continue
        p = welch(_measured(combination, measure), reference)
        if p is not None:
            labels.append(combination.label)
            probabilities.append(p)
    p_by_label = dict(zip(labels, holm(probabilities), strict=True))
    return [_row(combination, p_by_label.get(combination.label)) for combination in combinations]


def verdict(combinations: Sequence[Combination], measure: str) -> Verdict:
    """The winner, and whether it is one.

    It is if it beats each of the others at the 5 % level, corrected for their number.
    """
    losses = []  # of each combination that has any
    labels = []
    for combination in combinations:
        if values := _measured(combination, measure):
            losses.append(values)
            labels.append(combination.label)
    if not losses:
        return Verdict(None, False, "no run is complete")
    winner, *others = sorted(range(len(losses)), key=lambda place: statistics.fmean(losses[place]))
    label = labels[winner]
    num_missing = len(combinations) - len(losses)
    missing = f"{num_missing} others have no complete run"
    if not others and not num_missing:
        return Verdict(label, False, "there is nothing to compare it with")
    if not others:
        return Verdict(label, False, missing)
    probabilities = []
    for place in others:
        p = welch(losses[winner], losses[place])
        if p is None:
            return Verdict(label, False, _too_few_seeds(labels, losses))
        probabilities.append(p)
    corrected = holm(probabilities)
    close = []
    for place, p in zip(others, corrected, strict=True):
        if p > LEVEL:
            close.append(labels[place])
    if close:
        return Verdict(label, False, f"seeds alone may explain its lead over {_some(close)}")
    if num_missing:
        return Verdict(label, False, missing)
    why = f"lower than each other, p ≤ {max(corrected):.2g} (Welch's t-test, corrected after Holm)"
    return Verdict(label, True, why)


def _too_few_seeds(labels: Sequence[str], losses: Sequence[Sequence[float]]) -> str:
    short_of_seeds = []
    for label, values in zip(labels, losses, strict=True):
        if len(values) < FEWEST_SEEDS:
            short_of_seeds.append(label)
    return (
        f"too few seeds to tell: a test needs {FEWEST_SEEDS} complete runs a combination "
        f"(three tell more); short of that: {_some(short_of_seeds)}"
    )


def choose_baseline(combinations: Sequence[Combination], words: str | None) -> Combination:
    """The combination that `optim=fused_adam,optim.lr=1e-4` names, or the first.

    InputError unless it names one.
    """
    if words is None:
        return combinations[0]
    names: dict[str, None] = {}
    for combination in combinations:
        names.update(dict.fromkeys(map(short, combination.values)))
    wanted: dict[str, str] = {}
    for word in words.split(","):
        name, _, value = word.partition("=")
        wanted[name] = value
    for name in wanted:
        if short(name) not in names:
            swept = ", ".join(names) or "nothing"
            raise InputError(f"--baseline {words}: {name} is not swept here; swept: {swept}")
    matching = []
    for combination in combinations:
        value_by_name = {short(key): value for key, value in combination.values.items()}
        if all(_is_spelt(value_by_name[short(name)], wanted[name]) for name in wanted):
            matching.append(combination)
    if len(matching) != 1:
        candidates = matching or combinations
        labels = "; ".join(combination.label for combination in candidates[:8])
        raise InputError(
            f"--baseline {words}: {len(matching)} combinations are so, one is needed: {labels}"
        )
    return matching[0]


def _is_spelt(value: Any, word: str) -> bool:
    """Whether `word` is the value as somebody may type it: 1e-4 for 0.0001, null for None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(word) == value
        except ValueError:
            return False
    return str(value) == word or (value is None and word == "null") or str(value).lower() == word


def _row(combination: Combination, p_baseline: float | None) -> Row:
    complete = combination.complete
    runs = complete + combination.unfinished
    speeds = _measured(combination, "tokens_per_second")
    return Row(
        values=combination.values,
        label=combination.label,
        complete=len(complete),
        runs=len(runs),
        heldout_loss=_spread(_measured(combination, "heldout_loss")),
        best_loss=_spread(_measured(combination, "best_loss")),
        final_loss=_spread(_measured(combination, "final_loss")),
        tokens_per_second=statistics.fmean(speeds) if speeds else None,
        gpu_hours=sum(run.gpu_hours for run in runs),
        p_baseline=p_baseline,
    )


def _measured(combination: Combination, name: str) -> list[float]:
    """A number of each complete run in which it was measured."""
    values = []
    for run in combination.complete:
        value = getattr(run, name)
        if value is not None:
            values.append(value)
    return values


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def _some(labels: Sequence[str]) -> str:
    more = f"; and {len(labels) - 4} more" if len(labels) > 4 else ""
    return "; ".join(labels[:4]) + more
