"""Which keys tell the runs of a sweep apart, and which runs are the same but for their seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.sweeps.results import Result

SEED = "run.seed"
# Where a run lies, how it was asked for, in which queue it waited and what kept it going: neither
# what is learned nor how fast a step is. Nobody compares runs by these, and a seed that was
# submitted again with a longer time limit is still one of its seeds. What a step runs on and with
# stays (cluster.nodes, cluster.wrapper, train.micro_batch, …).
_NO_TREATMENT = (
    *("run.name", "run.sweep", "run.root", "run.group", "run.max_gpu_hours", "run.depends_on"),
    *("data.out", "data.workers", "train.eval_every", "dry_run", "test_only", "local", "json"),
    *(
        "cluster.partition",
        "cluster.account",
        "cluster.qos",
        "cluster.constraint",
        "cluster.exclude",
    ),
    *(
        "cluster.reservation",
        "cluster.gpu_request",
        "cluster.spare_nodes",
        "cluster.mem",
        "cluster.sbatch",
    ),
    *("cluster.time_min", "cluster.signal_lead_s", "cluster.array_throttle"),
    *("cluster.setup", "cluster.exports", "cluster.python"),
    *(
        "cluster.expected_mfu",
        "cluster.gpu_peak_tflops",
    ),  # the plan's and the MFU's, not the step's
    *("checkpoint", "recovery", "trackers", "halving", "search"),
)
_TREATMENT_ALL_THE_SAME = (
    "recovery.on_divergence",
    "recovery.spike_threshold",
)  # they leave batches out
_PRESETS = ("model.name", "optim.name", "data.name", "train.name", "cluster.name")


@dataclass(frozen=True)
class Combination:
    """One choice of values and its runs, one a seed."""

    values: dict[str, Any]  # key → value, for every swept key
    complete: list[Result]
    unfinished: list[Result]

    @property
    def label(self) -> str:
        return (
            ", ".join(f"{short(key)}={value}" for key, value in self.values.items()) or "all runs"
        )


def short(key: str) -> str:
    """`model` of model.name; other keys as they are."""
    return key.removesuffix(".name")


def swept_keys(runs: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The fewest keys that tell the runs apart but for their seed, presets first; and those that
    only follow them.

    A key follows where its value is known from the ones before it: a model's d_model, or the lr of
    its recipe.
    """
    varied = [key for key in _all_keys(runs) if len({_value(run, key) for run in runs}) > 1]
    parts = [list(runs)]
    chosen = list[str]()
    follow = list[str]()
    for key in [key for key in _PRESETS if key in varied] + [
        key for key in varied if key not in _PRESETS
    ]:
        finer = [part for whole in parts for part in _split(whole, key)]
        (chosen if len(finer) > len(parts) else follow).append(key)
        parts = finer
    return chosen, follow


def combinations(
    runs: Sequence[Result], keys: Sequence[str]
) -> tuple[list[Combination], list[Result]]:
    """Runs with the same values of `keys` together, in the order of the values; and the repeated
    ones that count once.

    Two runs of the same seed are one observation, not two: the complete one that comes first by
    name is taken.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for run in sorted(runs, key=lambda run: (not run.complete, run.name)):
        groups.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    found = []
    repeated = []
    for group in groups.values():
        single: dict[Any, Result] = {}
        for run in group:
            if single.setdefault(run.seed, run) is not run:
                repeated.append(run)
        values = {key: group[0].config.get(key) for key in keys}
        kept = single.values()
        found.append(
            Combination(
                values,
                [run for run in kept if run.complete],
                [run for run in kept if not run.complete],
            )
        )
    return sorted(found, key=lambda one: [_order(one, key) for key in keys]), repeated


def _all_keys(runs: Iterable[Result]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if key != SEED and _is_treatment(key)]


def _is_treatment(key: str) -> bool:
    parts = key.split(".")
    above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return key in _TREATMENT_ALL_THE_SAME or above.isdisjoint(_NO_TREATMENT)


def _split(runs: Sequence[Result], key: str) -> list[list[Result]]:
    parts: dict[str, list[Result]] = {}
    for run in runs:
        parts.setdefault(_value(run, key), []).append(run)
    return list(parts.values())


def _value(run: Result, key: str) -> str:
    return json.dumps(run.config.get(key), sort_keys=True)


def _order(one: Combination, key: str) -> tuple[float, str]:
    """Models by size, numbers by value, words by the alphabet."""
    value = one.values[key]
    if key == "model.name":
        return (min(run.parameters for run in one.complete + one.unfinished), str(value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (float(value), "") if number else (0.0, str(value))
