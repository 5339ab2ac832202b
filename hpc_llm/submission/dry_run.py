"""What is printed of runs that are not submitted: their plans and scripts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from hpc_llm.config import verbs
from hpc_llm.planning.render import render
from hpc_llm.runs.planned import PlannedRun

_MOST_TASKS = 1001  # of an array, when Slurm is not asked: its default MaxArraySize


def show(runs: Sequence[PlannedRun]) -> None:
    """Print the plan of every run and, with a cluster, every job's script and a srun line.

    Slurm is not asked, nothing written.
    """
    first = runs[0].config
    scripts = []
    steps = []
    if first.cluster.launcher != "local":
        from hpc_llm.submission.arrays import divide  # a plan has no scripts

        scripts = [script.text for script in divide(runs, _MOST_TASKS)]
        steps = [_srun_line(run) for run in runs]
    if first.json:
        verbs.print_json({"plans": plain_plans(runs), "scripts": scripts, "steps": steps})
        return
    print("\n\n".join([plans_text(runs), *scripts]))
    for line in steps[:1]:
        print(f"# The supervisor in the job starts the ranks, once per attempt:\n{line}")


def _srun_line(run: PlannedRun) -> str:
    from hpc_llm.slurm import step  # a plan has no step either

    return step.shown(run.config.cluster, str(run.layout.path), sys.executable)


def plain_plans(runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """The plans of a submission, for scripts."""
    return [dataclasses.asdict(run.plan) for run in runs]


def plans_text(runs: Sequence[PlannedRun]) -> str:
    """The plans of a submission; in a sweep, each below the name of its run."""
    if len(runs) == 1:
        return render(runs[0].config, runs[0].plan)
    return "\n\n".join(f"# {run.config.run.name}\n{render(run.config, run.plan)}" for run in runs)
