"""Which combinations form a ladder of model sizes, and the scaling fit of each ladder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.scaling import FEWEST_SIZES, ScalingFit, fit
from hpc_llm.sweeps.varied import Combination, short

_SIZE_KEYS = {
    "model.name",
    "model.d_model",
    "model.n_heads",
    "model.n_layers",
    "model.expansion_ratio",
    "model.vocab_size",
}
AGAINST = {"parameters": "parameters", "compute": "train_flops"}


@dataclass(frozen=True)
class Ladder:
    """Combinations that differ only in size."""

    label: str  # what they share
    fit: ScalingFit | None
    why: str | None  # there is no fit


def ladders(
    combinations: Sequence[Combination], measure: str, against: str, next_size: float | None
) -> list[Ladder]:
    """One fit for each choice of the keys other than size; none if sizes were not swept."""
    sizes_were_swept = False
    groups: dict[str, list[Combination]] = {}
    for combination in combinations:
        shared = []
        for key, value in combination.values.items():
            if key in _SIZE_KEYS:
                sizes_were_swept = True
            else:
                shared.append(f"{short(key)}={value}")
        groups.setdefault(", ".join(shared), []).append(combination)
    if not sizes_were_swept:
        return []
    fitted = []
    for label, rungs in groups.items():
        fitted.append(_ladder(label, rungs, measure, against, next_size))
    return fitted


def _ladder(
    label: str, rungs: Sequence[Combination], measure: str, against: str, next_size: float | None
) -> Ladder:
    points: dict[float, list[float]] = {}
    missing = []
    for rung in rungs:
        if not rung.complete:
            missing.append(rung.label)
        for run in rung.complete:
            loss = getattr(run, measure)
            if loss is not None:
                points.setdefault(float(getattr(run, AGAINST[against])), []).append(loss)
    if missing and len(points) < FEWEST_SIZES:
        why = f"a fit needs {FEWEST_SIZES} sizes with complete runs; none yet of {missing[0]}"
        return Ladder(label, None, why)
    means = [statistics.fmean(losses) for losses in points.values()]
    try:
        return Ladder(label, fit(list(points), means, next_size), None)
    except InputError as error:
        return Ladder(label, None, str(error))
