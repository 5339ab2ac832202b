"""Which keys tell the runs of a sweep apart, and which runs are the same but for their seed."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.sweeps.results import Result

SEED = "run.seed"
# Where a run lies, how it was asked for, in which queue it waited and what kept it going: neither
# what is learned nor how fast a step is. Nobody compares runs by these, and a seed that was
# submitted again with a longer time limit is still one of its seeds. What a step runs on and with
# stays (cluster.nodes, cluster.wrapper, train.micro_batch, …).
_NO_TREATMENT = {
    "run.name",
    "run.sweep",
    "run.root",
    "run.group",
    "run.max_gpu_hours",
    "run.depends_on",
    "data.out",
    "data.workers",
    "train.eval_every",
    "dry_run",
    "test_only",
    "local",
    "json",
    "cluster.partition",
    "cluster.account",
    "cluster.qos",
    "cluster.constraint",
    "cluster.exclude",
    "cluster.reservation",
    "cluster.gpu_request",
    "cluster.spare_nodes",
    "cluster.mem",
    "cluster.sbatch",
    "cluster.srun",
    "cluster.time_min",
    "cluster.signal_lead_s",
    "cluster.array_throttle",
    "cluster.setup",
    "cluster.exports",
    "cluster.python",
    "cluster.expected_mfu",  # these two are the plan's and the MFU's, not the step's
    "cluster.gpu_peak_tflops",
    "checkpoint",
    "recovery",
    "trackers",
    "halving",
    "search",
}
# Though their section is none: they leave batches out.
_TREATMENT_ALL_THE_SAME = ("recovery.on_divergence", "recovery.spike_threshold")
_PRESETS = ("model.name", "optim.name", "data.name", "train.name", "cluster.name")


@dataclass(frozen=True)
class Combination:
    """One choice of values and its runs, one a seed."""

    values: dict[str, Any]  # key → value, for every swept key
    complete: list[Result]
    unfinished: list[Result]

    @property
    def label(self) -> str:
        """`optim=fused_adam, optim.lr=0.0001`"""
        words = [f"{short(key)}={value}" for key, value in self.values.items()]
        return ", ".join(words) or "all runs"


def short(key: str) -> str:
    """`model` of model.name; other keys as they are."""
    return key.removesuffix(".name")


def swept_keys(runs: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The fewest keys that tell the runs apart but for their seed, and those that only follow them.

    Presets come first. A key follows where its value is known from the ones before it: a model's
    d_model, or the lr of its recipe.
    """
    varied = _varied_keys(runs)
    ordered = [key for key in _PRESETS if key in varied]
    for key in varied:
        if key not in _PRESETS:
            ordered.append(key)
    groups = [list(runs)]
    chosen = []
    follow = []
    for key in ordered:
        finer = []
        for group in groups:
            finer += _split(group, [key])
        if len(finer) > len(groups):
            chosen.append(key)
        else:
            follow.append(key)
        groups = finer
    return chosen, follow


def combinations(
    runs: Sequence[Result], keys: Sequence[str]
) -> tuple[list[Combination], list[Result]]:
    """Runs with the same values of `keys` together, in the order of the values; and repeated runs.

    Two runs of the same seed are one observation, not two: the complete one that comes first by
    name is taken.
    """
    combined = []
    repeated = []
    for group in _split(sorted(runs, key=lambda run: (not run.complete, run.name)), keys):
        complete = []
        unfinished = []
        seeds = set()
        for run in group:
            if run.seed in seeds:
                repeated.append(run)
            elif run.complete:
                complete.append(run)
            else:
                unfinished.append(run)
            seeds.add(run.seed)
        values = {key: group[0].config.get(key) for key in keys}
        combined.append(Combination(values, complete, unfinished))
    combined.sort(key=lambda combination: [_order(combination, key) for key in keys])
    return combined, repeated


def _varied_keys(runs: Sequence[Result]) -> list[str]:
    """Keys with several values that say what was done, in the order of the configurations."""
    keys: dict[str, None] = {}
    for run in runs:
        keys.update(dict.fromkeys(run.config))
    varied = []
    for key in keys:
        if _is_treatment(key) and len({_value(run, key) for run in runs}) > 1:
            varied.append(key)
    return varied


def _is_treatment(key: str) -> bool:
    """Whether the key, and no section that it lies in, is one by which runs are compared."""
    if key == SEED:
        return False
    if key in _TREATMENT_ALL_THE_SAME:
        return True
    while key:
        if key in _NO_TREATMENT:
            return False
        key = key.rpartition(".")[0]
    return True


def _split(runs: Sequence[Result], keys: Collection[str]) -> list[list[Result]]:
    """The runs in groups that have the same values of `keys`, in order."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for run in runs:
        values = tuple(_value(run, key) for key in keys)
        groups.setdefault(values, []).append(run)
    return list(groups.values())


def _value(run: Result, key: str) -> str:
    return json.dumps(run.config.get(key), sort_keys=True)


def _order(combination: Combination, key: str) -> tuple[float, str]:
    """Models by size, numbers by value, words by the alphabet."""
    value = combination.values[key]
    if key == "model.name":
        runs = combination.complete + combination.unfinished
        return (min(run.parameters for run in runs), str(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value), "")
    return (0.0, str(value))
