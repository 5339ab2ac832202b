"""The next trials of a search, by Optuna's ask and tell. The only file that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.config.search_space import Dimension


@dataclass(frozen=True)
class Trial:
    """What was chosen, and its result: a loss, nothing yet (running), or nothing at all
    (failed).
    """

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
    """Key → value for `num` more trials: the tree-structured Parzen estimator (Bergstra 2011),
    losses minimised.

    A function of its arguments: the study is rebuilt each time from what is known, so none has to
    be kept. Running trials count as bad ones (constant liar), so that trials that run at once
    differ.
    """
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def distribution(one: Dimension) -> BaseDistribution:
        if one.choices:
            return CategoricalDistribution(one.choices)
        if one.whole:
            return IntDistribution(int(one.low), int(one.high), log=one.log)
        return FloatDistribution(one.low, one.high, log=one.log)

    distributions = {one.key: distribution(one) for one in space}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), constant_liar=True)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in trials:
        state = (
            TrialState.RUNNING
            if trial.running
            else TrialState.FAIL
            if trial.loss is None
            else TrialState.COMPLETE
        )
        study.add_trial(
            create_trial(
                state=state,
                value=trial.loss if state is TrialState.COMPLETE else None,
                params=trial.chosen,
                distributions=distributions,
            )
        )
    asked = [study.ask(distributions).params for _ in range(num)]
    return [{one.key: _readable(params[one.key], one) for one in space} for params in asked]


def _readable(value: Any, dimension: Dimension) -> Any:
    """A number that is easy to type again: four digits are more precise than a search is."""
    if not isinstance(value, float) or dimension.choices:
        return value
    return min(max(float(f"{value:.4g}"), dimension.low), dimension.high)
