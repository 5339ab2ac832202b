"""What one sbatch submits: a single run, or an array of runs of the same shape. No Slurm here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.compose import Choice
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import freeze
from hpc_llm.runs.freeze import digest_of
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.slurm.script import render_script
from hpc_llm.storage.files import link_atomic, write_atomic

_SCRIPT_BYTES = 3_000_000  # Slurm takes 4 MB (MAX_BATCH_SCRIPT_SIZE)


@dataclass(frozen=True)
class JobScript:
    """One script and the runs it starts; in an array, the task's index is the run's index in
    `runs`.
    """

    name: str  # of the job
    script: Path
    text: str
    work_dir: Path
    runs: list[RunLayout]
    array: bool
    depends_on: str | None
    throttle: int | None = None  # tasks at once

    def write(self) -> None:
        """The script; for an array, into the sweep's folder."""
        if self.array:
            SweepLayout(self.work_dir).slurm.mkdir(exist_ok=True)
        write_atomic(self.script, self.text)

    def link(self) -> None:
        """Once it is accepted: the script of an array is each of its runs' job.sbatch."""
        for run in self.runs if self.array else []:
            link_atomic(run.script, os.path.relpath(self.script, run.path))


def of_job(config: RunConfig, plan: RunPlan, task: int | None) -> JobScript:
    """The run of one job that somebody else submitted; with the index that it has there if that is
    an array's `task`.

    A watchdog submits the script as it would submit the task of a sweep's array.
    """
    (config,) = _with_notice([config], [plan])
    if task is None:
        return _single(config)
    layout = freeze.layout_for(config)
    folder = SweepLayout(layout.path.parent)
    name = config.run.sweep or layout.name
    text = render_script(
        config,
        run_dir=str(folder.path),
        python=_python(config),
        name=name,
        array={task: str(layout.path)},
    )
    return JobScript(name, layout.script, text, folder.path, [layout], True, config.run.depends_on)


def divide(configs: Sequence[RunConfig], plans: Sequence[RunPlan], most: int) -> list[JobScript]:
    """The parts of a submission, none with more than `most` runs; InputError if a script cannot be
    written.
    """
    configs = _with_notice(configs, plans)
    single = [_single(config) for config in configs if config.run.sweep is None]
    swept = [config for config in configs if config.run.sweep is not None]
    arrays = list(group_by_shape(swept, min(most, _tasks_in_a_script(swept)))) if swept else []
    number = _next_number(SweepLayout(freeze.layout_for(swept[0]).path.parent)) if swept else 1
    throttles = share_throttle(swept[0].cluster.array_throttle, len(arrays)) if swept else []
    pairs = enumerate(zip(arrays, throttles, strict=True), start=number)
    return single + [_array(runs, throttle, index) for index, (runs, throttle) in pairs]


def _with_notice(configs: Sequence[RunConfig], plans: Sequence[RunPlan]) -> list[RunConfig]:
    """Seconds for cluster.signal_lead_s=auto, the same for all runs, so that a sweep stays one
    array.
    """
    lead_s = max((plan.signal_lead_s or 0 for plan in plans), default=0)
    return [
        dataclasses.replace(
            config, cluster=dataclasses.replace(config.cluster, signal_lead_s=lead_s)
        )
        if config.cluster.signal_lead_s == "auto"
        else config
        for config in configs
    ]


def _single(config: RunConfig) -> JobScript:
    layout = freeze.layout_for(config)
    text = render_script(config, run_dir=str(layout.path), python=_python(config), name=layout.name)
    return JobScript(
        layout.name, layout.script, text, layout.code, [layout], False, config.run.depends_on
    )


def _array(configs: list[RunConfig], throttle: int | None, number: int) -> JobScript:
    layouts = [freeze.layout_for(config) for config in configs]
    folder = SweepLayout(layouts[0].path.parent)
    name = f"{folder.path.name}-{number}" if number > 1 else folder.path.name
    config = dataclasses.replace(
        configs[0], cluster=dataclasses.replace(configs[0].cluster, array_throttle=throttle)
    )
    tasks = {index: str(layout.path) for index, layout in enumerate(layouts)}
    text = render_script(
        config, run_dir=str(folder.path), python=_python(config), name=name, array=tasks
    )
    return JobScript(
        name,
        folder.script(number),
        text,
        folder.path,
        layouts,
        True,
        config.run.depends_on,
        throttle,
    )


def _next_number(folder: SweepLayout) -> int:
    number = 1
    while folder.script(number).exists():
        number += 1
    return number


def _tasks_in_a_script(configs: Sequence[RunConfig]) -> int:
    longest = max(len(str(freeze.layout_for(config).path)) for config in configs)
    return _SCRIPT_BYTES // (4 * longest + 16)  # four bytes per character, and the index


def _python(config: RunConfig) -> str:
    return config.cluster.python or sys.executable


# -- Names for the runs of a sweep, and which of them share an array: pure functions.


_MOST_CHARACTERS = 80


def name_runs(choices: Sequence[Choice]) -> list[RunConfig]:
    """The configurations with run.sweep and run.name set, so that every run has its own folder.

    A sweep is named by run.sweep or run.name; without them its name is derived from what its runs
    train, so that the same arguments mean the same sweep again. InputError if two runs would have
    the same folder.
    """
    configs = [choice.config for choice in choices]
    if len(configs) == 1:
        return configs
    chosen = "run.name" in choices[0].swept
    if not chosen:
        _refuse_duplicates(choices)
    names = (
        [str(config.run.name) for config in configs]
        if chosen
        else run_names([choice.swept for choice in choices])
    )
    sweeps = [config.run.sweep or (None if chosen else config.run.name) for config in configs]
    derived = None if all(sweeps) else derived_name(configs)
    placed = [
        dataclasses.replace(
            config, run=dataclasses.replace(config.run, name=name, sweep=sweep or derived)
        )
        for config, name, sweep in zip(configs, names, sweeps, strict=True)
    ]
    twice = Counter((config.run.root, config.run.sweep, config.run.name) for config in placed)
    if repeated := sorted(str(name) for (_, _, name), count in twice.items() if count > 1):
        raise InputError(
            f"run.name={repeated[0]}: several runs of this sweep have it; sweep distinct values"
        )
    return placed


def _refuse_duplicates(choices: Sequence[Choice]) -> None:
    """InputError if the arguments ask for the same run twice, spelt the same or not (1e-4 and
    0.0001).
    """
    seen: set[str] = set()
    for choice in choices:
        text = json.dumps(dataclasses.asdict(choice.config), sort_keys=True)
        if text in seen:
            label = " ".join(f"{key}={value}" for key, value in choice.swept.items())
            raise InputError(
                f"{label}: this sweep has it twice; sweep distinct values (run.seed for "
                "repetitions)"
            )
        seen.add(text)


def run_names(swept: Sequence[dict[str, str]]) -> list[str]:
    """`lr=1e-4,seed=2` from {optim.lr: 0.0001, run.seed: 2}: the swept keys, as short as they stay
    distinct.
    """
    keys = _short_keys(list(swept[0]))
    names = [
        ",".join(f"{keys[key]}={_plain(value)}" for key, value in choice.items())
        for choice in swept
    ]
    seen = Counter(names)
    return [
        name
        if seen[name] == 1 and len(name) <= _MOST_CHARACTERS
        else f"{name[: _MOST_CHARACTERS - 9]}-{_digest(choice)}"
        for name, choice in zip(names, swept, strict=True)
    ]


def derived_name(configs: Sequence[RunConfig]) -> str:
    """The name of a sweep that the user has not named."""
    models = {config.model.name for config in configs}
    return f"{models.pop() if len(models) == 1 else 'models'}-sweep-{digest_of(configs)}"


def group_by_shape(configs: Sequence[RunConfig], most: int) -> Iterator[list[RunConfig]]:
    """The runs as arrays of at most `most`, each with a single resource shape, in order."""
    shapes: dict[str, list[RunConfig]] = {}
    for config in configs:
        header = dataclasses.asdict(config.cluster)  # everything in a script's header
        shape = json.dumps([config.run.depends_on, header], sort_keys=True)
        shapes.setdefault(shape, []).append(config)
    for same in shapes.values():
        yield from (same[start : start + most] for start in range(0, len(same), most))


def share_throttle(throttle: int | None, num_arrays: int) -> list[int | None]:
    """cluster.array_throttle divided among arrays: Slurm applies it to each array, but it is meant
    for the sweep.
    """
    if throttle is None:
        return [None] * num_arrays
    share, rest = divmod(throttle, num_arrays)
    return [max(1, share + (number < rest)) for number in range(num_arrays)]


def _short_keys(keys: list[str]) -> dict[str, str]:
    """Each key's shortest unique ending: optim.lr → lr, but beside model.recipe.lr → optim.lr."""

    def end(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    short = {}
    for key in keys:
        lengths = range(1, key.count(".") + 2)
        distinct = (
            n
            for n in lengths
            if not any(end(key, n) == end(other, n) for other in keys if other != key)
        )
        short[key] = end(key, next(distinct, lengths[-1]))
    return short


def _plain(value: str) -> str:
    """A value as part of a folder's name; numbers as short as possible (0.0001 → 1e-4)."""
    if re.fullmatch(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,2})?", value):
        mantissa, _, exponent = f"{float(value):e}".partition("e")
        scientific = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        if float(scientific) == float(value) and len(scientific) < len(value):
            return scientific
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-")


def _digest(choice: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:8]
