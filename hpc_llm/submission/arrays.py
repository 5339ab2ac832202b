"""What one sbatch submits: a single run, or an array of runs of the same shape. No Slurm here."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.slurm.script import render_script
from hpc_llm.storage.files import link_atomic, write_atomic

_SCRIPT_BYTES = 3_000_000  # Slurm takes 4 MB (MAX_BATCH_SCRIPT_SIZE)


@dataclass(frozen=True)
class JobScript:
    """One script and the runs that it starts.

    In an array, the task's index is the run's index in `runs`.
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
        """Write the script; for an array, into the sweep's folder."""
        if self.array:
            SweepLayout(self.work_dir).slurm.mkdir(exist_ok=True)
        write_atomic(self.script, self.text)

    def link(self) -> None:
        """Once it is accepted: the script of an array is each of its runs' job.sbatch."""
        if not self.array:
            return
        for run in self.runs:
            link_atomic(run.script, os.path.relpath(self.script, run.path))


def of_job(run: PlannedRun, task: int | None) -> JobScript:
    """The script of a run whose job somebody else submitted, with a script written by hand.

    task: the index that the run has there, if the job is an array's task. A watchdog submits the
    script as it would submit the task of a sweep's array.
    """
    (run,) = _with_notice([run])
    if task is None:
        return _single(run)
    config = run.config
    folder = SweepLayout(run.layout.path.parent)
    name = config.run.sweep or run.layout.name
    text = render_script(
        config,
        run_dir=str(folder.path),
        python=_python(config),
        name=name,
        array={task: str(run.layout.path)},
    )
    return JobScript(
        name,
        run.layout.script,
        text,
        work_dir=folder.path,
        runs=[run.layout],
        array=True,
        depends_on=config.run.depends_on,
    )


def divide(runs: Sequence[PlannedRun], most: int) -> list[JobScript]:
    """The scripts of a submission, none for more than `most` runs.

    InputError if a script cannot be written.
    """
    runs = _with_notice(runs)
    scripts = []
    swept = []
    for run in runs:
        if run.config.run.sweep is None:
            scripts.append(_single(run))
        else:
            swept.append(run)
    if not swept:
        return scripts
    arrays = list(group_by_shape(swept, min(most, _most_in_a_script(swept))))
    number = _next_number(SweepLayout(swept[0].layout.path.parent))
    throttles = share_throttle(swept[0].config.cluster.array_throttle, len(arrays))
    for array, throttle in zip(arrays, throttles, strict=True):
        scripts.append(_array(array, throttle, number))
        number += 1
    return scripts


def _with_notice(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Seconds for cluster.signal_lead_s=auto.

    They are the same for all runs, so that a sweep stays one array.
    """
    lead_s = 0
    for run in runs:
        lead_s = max(lead_s, run.plan.signal_lead_s or 0)
    noticed = []
    for run in runs:
        if run.config.cluster.signal_lead_s == "auto":
            cluster = dataclasses.replace(run.config.cluster, signal_lead_s=lead_s)
            config = dataclasses.replace(run.config, cluster=cluster)
            run = dataclasses.replace(run, config=config)
        noticed.append(run)
    return noticed


def _single(run: PlannedRun) -> JobScript:
    layout = run.layout
    text = render_script(
        run.config, run_dir=str(layout.path), python=_python(run.config), name=layout.name
    )
    return JobScript(
        layout.name,
        layout.script,
        text,
        work_dir=layout.code,
        runs=[layout],
        array=False,
        depends_on=run.config.run.depends_on,
    )


def _array(runs: Sequence[PlannedRun], throttle: int | None, number: int) -> JobScript:
    layouts = [run.layout for run in runs]
    folder = SweepLayout(layouts[0].path.parent)
    name = f"{folder.path.name}-{number}" if number > 1 else folder.path.name
    first = runs[0].config
    cluster = dataclasses.replace(first.cluster, array_throttle=throttle)
    text = render_script(
        dataclasses.replace(first, cluster=cluster),
        run_dir=str(folder.path),
        python=_python(first),
        name=name,
        array={index: str(layout.path) for index, layout in enumerate(layouts)},
    )
    return JobScript(
        name,
        folder.script(number),
        text,
        work_dir=folder.path,
        runs=layouts,
        array=True,
        depends_on=first.run.depends_on,
        throttle=throttle,
    )


def _next_number(folder: SweepLayout) -> int:
    number = 1
    while folder.script(number).exists():
        number += 1
    return number


def _most_in_a_script(runs: Sequence[PlannedRun]) -> int:
    """How many runs' paths a script can hold."""
    longest = max(len(str(run.layout.path)) for run in runs)
    return _SCRIPT_BYTES // (4 * longest + 16)  # four bytes per character, and the index


def _python(config: RunConfig) -> str:
    return config.cluster.python or sys.executable


def group_by_shape(runs: Sequence[PlannedRun], most: int) -> Iterator[list[PlannedRun]]:
    """The runs as arrays of at most `most`, each with a single resource shape, in order."""
    shapes: dict[str, list[PlannedRun]] = {}
    for run in runs:
        header = dataclasses.asdict(run.config.cluster)  # everything in a script's header
        shape = json.dumps([run.config.run.depends_on, header], sort_keys=True)
        shapes.setdefault(shape, []).append(run)
    for alike in shapes.values():
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def share_throttle(throttle: int | None, num_arrays: int) -> list[int | None]:
    """cluster.array_throttle divided among arrays.

    Slurm applies it to each array, but it is meant for the sweep.
    """
    if throttle is None:
        return [None] * num_arrays
    share, rest = divmod(throttle, num_arrays)
    return [max(1, share + (number < rest)) for number in range(num_arrays)]
