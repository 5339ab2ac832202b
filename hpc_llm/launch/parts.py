"""What one sbatch submits: a single run, or an array of runs of the same shape. No Slurm here."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.launch import sweep
from hpc_llm.launch.sbatch import render_script
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.storage.files import write_atomic

_SCRIPT_BYTES = 3_000_000  # Slurm takes 4 MB (MAX_BATCH_SCRIPT_SIZE)


@dataclass(frozen=True)
class Part:
    """One script and the runs it starts; in an array, the task's index is the run's index in `runs`."""

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
            link = run.script.with_name(f".{run.script.name}.{os.getpid()}")
            link.symlink_to(os.path.relpath(self.script, run.path))
            link.replace(run.script)


def of_job(config: RunConfig, plan: RunPlan, task: int | None) -> Part:
    """The run of one job that somebody else submitted; with the index that it has there if that is an array's `task`.

    A watchdog submits the script as it would submit the task of a sweep's array.
    """
    (config,) = _with_notice([config], [plan])
    if task is None:
        return _single(config)
    layout = freeze.layout_for(config)
    folder, name = SweepLayout(layout.path.parent), config.run.sweep or layout.name
    text = render_script(
        config, run_dir=str(folder.path), python=_python(config), name=name, array={task: str(layout.path)}
    )
    return Part(name, layout.script, text, folder.path, [layout], True, config.run.depends_on)


def divide(configs: Sequence[RunConfig], plans: Sequence[RunPlan], most: int) -> list[Part]:
    """The parts of a submission, none with more than `most` runs; InputError if a script cannot be written."""
    configs = _with_notice(configs, plans)
    single = [_single(config) for config in configs if config.run.sweep is None]
    swept = [config for config in configs if config.run.sweep is not None]
    arrays = list(sweep.arrays(swept, min(most, _tasks_in_a_script(swept)))) if swept else []
    number = _next_number(SweepLayout(freeze.layout_for(swept[0]).path.parent)) if swept else 1
    throttles = sweep.throttles(swept[0].cluster.array_throttle, len(arrays)) if swept else []
    pairs = enumerate(zip(arrays, throttles, strict=True), start=number)
    return single + [_array(runs, throttle, index) for index, (runs, throttle) in pairs]


def _with_notice(configs: Sequence[RunConfig], plans: Sequence[RunPlan]) -> list[RunConfig]:
    """Seconds for cluster.signal_lead_s=auto, the same for all runs, so that a sweep stays one array."""
    lead_s = max((plan.signal_lead_s or 0 for plan in plans), default=0)
    return [
        dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, signal_lead_s=lead_s))
        if config.cluster.signal_lead_s == "auto"
        else config
        for config in configs
    ]


def _single(config: RunConfig) -> Part:
    layout = freeze.layout_for(config)
    text = render_script(config, run_dir=str(layout.path), python=_python(config), name=layout.name)
    return Part(layout.name, layout.script, text, layout.code, [layout], False, config.run.depends_on)


def _array(configs: list[RunConfig], throttle: int | None, number: int) -> Part:
    layouts = [freeze.layout_for(config) for config in configs]
    folder = SweepLayout(layouts[0].path.parent)
    name = f"{folder.path.name}-{number}" if number > 1 else folder.path.name
    config = dataclasses.replace(configs[0], cluster=dataclasses.replace(configs[0].cluster, array_throttle=throttle))
    tasks = {index: str(layout.path) for index, layout in enumerate(layouts)}
    text = render_script(config, run_dir=str(folder.path), python=_python(config), name=name, array=tasks)
    return Part(name, folder.script(number), text, folder.path, layouts, True, config.run.depends_on, throttle)


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
