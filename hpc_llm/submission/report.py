"""What the user sees of a submission: job ids, folders, and which commands to run next."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.planning.render import render_all
from hpc_llm.runs import freeze
from hpc_llm.storage import operators
from hpc_llm.submission.arrays import divide
from hpc_llm.submission.cluster import Job, Outcome

_MOST_TASKS = 1001  # of an array, when Slurm is not asked: its default MaxArraySize


def dry_run(configs: Sequence[RunConfig], plans: Sequence[RunPlan]) -> None:
    """Print the plan of every run and, with a cluster, the script of every job; Slurm is not asked,
    nothing written.
    """
    here = configs[0].cluster.launcher == "local"
    scripts = [] if here else [part.text for part in divide(configs, plans, _MOST_TASKS)]
    if configs[0].json:
        verbs.print_json(
            {"plans": [dataclasses.asdict(plan) for plan in plans], "scripts": scripts}
        )
    else:
        print("\n\n".join([render_all(configs, plans), *scripts]))


def outcome(done: Outcome, configs: Sequence[RunConfig]) -> int:
    """Print what was submitted and what was not; the exit status. InputError if nothing could
    be.
    """
    if not done.jobs and not done.waiting and len(configs) == 1:
        ((path, why),) = done.left.items()
        if why != "complete":
            raise InputError(
                f"run.name={path.name}: {why}: {path} is submitted already; scancel it first, or "
                "wait"
            )
    if configs[0].json:
        runs = [
            {"job": address, "run_dir": str(run.path)}
            for job in done.jobs
            for address, run in job.runs.items()
        ]
        verbs.print_json(runs)
        return 0
    for job in done.jobs:
        print(f"submitted: {_called(job)}")
    if others := done.other_code:
        print(
            f"{others[0].name}{f' and {len(others) - 1:,} more' if others[1:] else ''}: "
            f"{freeze.OTHER_CODE}"
        )
    if done.waiting:
        num_waiting = sum(len(rest.tasks) for rest in done.waiting)
        print(
            f"{num_waiting:,} runs are waiting until Slurm accepts more jobs: {done.waiting[0].why}"
        )
        print("the watchdog submits them as other jobs end")
    if len(configs) == 1:
        ((path),) = [freeze.layout_for(configs[0]).path]
        print(
            f"run directory: {path}" if done.jobs else f"{path} is complete: nothing left to train"
        )
    else:
        _left(done, len(configs))
        print(f"run directories: {freeze.layout_for(configs[0]).path.parent}/*/")
    if done.jobs or done.waiting:
        _next(done, configs)
    return 0


def _called(job: Job) -> str:
    if not job.array:
        return f"job {job.job_id} ({job.name})"
    return f"array {job.job_id} ({job.name}), {len(job.runs):,} runs"


def _left(done: Outcome, num_runs: int) -> None:
    if not done.left:
        return
    complete = sum(why == "complete" for why in done.left.values())
    out = sum(why.startswith("stopped by halving") for why in done.left.values())
    halved = f", {out:,} stopped by halving (halving.rungs=[] resumes them)" if out else ""
    queued = len(done.left) - complete - out
    print(
        f"not submitted: of {num_runs:,} runs {complete:,} are complete{halved} and {queued:,} "
        "queued or running"
    )


def _next(done: Outcome, configs: Sequence[RunConfig]) -> None:
    numbers = ",".join(str(job.job_id) for job in done.jobs)
    root = shlex.quote(str(freeze.root_of(configs[0])))
    print("next:")
    if done.jobs:
        print(f"  squeue --jobs={numbers}")
    print(f"  python -m hpc_llm.status {root}")
    if done.waiting or not configs[0].recovery.successor:
        print(
            f"  python -m hpc_llm.watchdog {root}      # keeps them going: in tmux, or "
            "sbatch/watchdog.sbatch"
        )
    if done.jobs:
        print(f"  scancel {numbers.replace(',', ' ')}")
    gpu = next((config for config in configs if config.cluster.device != "cpu"), None)
    if gpu is not None and operators.needed(gpu.optim.name, "cuda"):
        print(
            f"  python -m hpc_llm.build +cluster={gpu.cluster.name} optim={gpu.optim.name}      # "
            "once, if not done yet"
        )
