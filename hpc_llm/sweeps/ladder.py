"""Which combinations form a ladder of model sizes, and the scaling fit of each ladder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.scaling import FEWEST_SIZES, ScalingFit, fit
from hpc_llm.sweeps.varied import Combination, short

_SIZE_KEYS = {
    *(
        "model.name",
        "model.d_model",
        "model.n_heads",
        "model.n_layers",
        "model.expansion_ratio",
        "model.vocab_size",
    ),
}
AGAINST = {"parameters": "parameters", "compute": "train_flops"}


@dataclass(frozen=True)
class Ladder:
    """Combinations that differ only in size. label: what they share; fit: if None, `why` says
    why.
    """

    label: str
    fit: ScalingFit | None
    why: str | None


def ladders(
    combinations: Sequence[Combination], measure: str, against: str, next_size: float | None
) -> list[Ladder]:
    """One fit for each choice of the keys other than size; none if sizes were not swept."""
    if not any(key in _SIZE_KEYS for one in combinations for key in one.values):
        return []
    groups: dict[str, list[Combination]] = {}
    for one in combinations:
        common = {key: value for key, value in one.values.items() if key not in _SIZE_KEYS}
        groups.setdefault(
            ", ".join(f"{short(key)}={value}" for key, value in common.items()), []
        ).append(one)
    return [_ladder(label, rungs, measure, against, next_size) for label, rungs in groups.items()]


def _ladder(
    label: str, rungs: Sequence[Combination], measure: str, against: str, next_size: float | None
) -> Ladder:
    points: dict[float, list[float]] = {}
    for run in (run for rung in rungs for run in rung.complete):
        if (loss := getattr(run, measure)) is not None:
            points.setdefault(float(getattr(run, AGAINST[against])), []).append(loss)
    missing = [rung.label for rung in rungs if not rung.complete]
    if missing and len(points) < FEWEST_SIZES:
        return Ladder(
            label,
            None,
            f"a fit needs {FEWEST_SIZES} sizes with complete runs; none yet of {missing[0]}",
        )
    try:
        return Ladder(
            label,
            fit(list(points), [statistics.fmean(losses) for losses in points.values()], next_size),
            None,
        )
    except InputError as error:
        return Ladder(label, None, str(error))
