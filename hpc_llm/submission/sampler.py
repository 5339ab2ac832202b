"""The next trials of a search, by Optuna's ask and tell. The only file that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpc_llm.config.errors import InputError
from hpc_llm.config.search_space import Dimension

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Trial:
    """What was chosen, and its result: a loss, nothing yet (running), or none at all (failed)."""

    chosen: dict[str, Any]
    loss: float | None = None
    running: bool = False


def require() -> None:
    """InputError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("search.trials: needs Optuna; pip install 'hpc_llm[search]'") from None


def ask(
    space: Sequence[Dimension], trials: Sequence[Trial], num: int, seed: int
) -> list[dict[str, Any]]:
    """Key → value for `num` more trials, which should have lower losses.

    The tree-structured Parzen estimator (Bergstra 2011) chooses them. A function of its arguments:
    the study is rebuilt each time from what is known, so none has to be kept. Running trials count
    as bad ones (constant liar), so that trials that run at once differ.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {dimension.key: _distribution(dimension) for dimension in space}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), constant_liar=True)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in trials:
        study.add_trial(_as_told(trial, distributions))
    asked = []
    for _ in range(num):
        params = study.ask(distributions).params
        asked.append({axis.key: _readable(params[axis.key], axis) for axis in space})
    return asked


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _as_told(trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    loss = None
    if trial.running:
        state = TrialState.RUNNING
    elif trial.loss is None:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE
        loss = trial.loss
    return create_trial(state=state, value=loss, params=trial.chosen, distributions=distributions)


def _readable(value: Any, dimension: Dimension) -> Any:
    """A number that is easy to type again: four digits are more precise than a search is."""
    if not isinstance(value, float) or dimension.choices:
        return value
    return min(max(float(f"{value:.4g}"), dimension.low), dimension.high)
