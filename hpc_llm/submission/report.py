"""What the user sees of a submission: job ids, folders, and which commands to run next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from hpc_llm.config import hints, verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import freeze, identity
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.storage import operators
from hpc_llm.submission.cluster import Outcome
from hpc_llm.submission.send_all import Job

_MOST_LONGER = 3


def outcome(done: Outcome, runs: Sequence[PlannedRun]) -> int:
    """Print what was submitted and what was not; the exit status.

    InputError if nothing could be.
    """
    if not done.jobs and not done.waiting and len(runs) == 1:
        _refuse_submitted(done)
    if runs[0].config.json:
        for job in done.jobs:
            print_notes(job.notes, sys.stderr)
        verbs.print_json(_run_directories(done))
        return 0
    for job in done.jobs:
        print(f"submitted: {_called(job)}")
        print_notes(job.notes)
    if done.other_code:
        num_more = len(done.other_code) - 1
        more = f" and {num_more:,} more" if num_more else ""
        print(f"{done.other_code[0].name}{more}: {freeze.OTHER_CODE}")
    for line in done.longer[:_MOST_LONGER]:
        print(line)
    if len(done.longer) > _MOST_LONGER:
        print(f"… and {len(done.longer) - _MOST_LONGER:,} more are made longer")
    if done.waiting:
        num_waiting = sum(len(rest.tasks) for rest in done.waiting)
        print(
            f"{num_waiting:,} runs are waiting until Slurm accepts more jobs: {done.waiting[0].why}"
        )
        print("the watchdog submits them as other jobs end")
    _print_folders(done, runs)
    if done.jobs or done.waiting:
        _print_next(done, runs)
    return 0


def print_notes(notes: Sequence[str], stream: TextIO | None = None) -> None:
    """What Slurm's sbatch said of a job that it accepted, such as that a site's filter moved it."""
    for note in notes:
        print(f"  {note}", file=stream)


def _refuse_submitted(done: Outcome) -> None:
    """InputError unless the only run was left alone because it is complete."""
    ((path, why),) = done.left.items()
    if why != "complete":
        raise InputError(
            f"run.name={path.name}: {why}: {path} is submitted already; scancel it first, or wait"
        )


def _run_directories(done: Outcome) -> list[dict[str, str]]:
    """What was submitted, for scripts."""
    rows = []
    for job in done.jobs:
        for address, run in job.runs.items():
            rows.append({"job": address, "run_dir": str(run.path)})
    return rows


def _called(job: Job) -> str:
    if not job.array:
        return f"job {job.job_id} ({job.name})"
    return f"array {job.job_id} ({job.name}), {len(job.runs):,} runs"


def _print_folders(done: Outcome, runs: Sequence[PlannedRun]) -> None:
    path = runs[0].layout.path
    if len(runs) > 1:
        _print_left(done, len(runs))
        print(f"run directories: {path.parent}/*/")
    elif done.jobs:
        print(f"run directory: {path}")
    else:
        print(f"{path} is complete: nothing left to train")


def _print_left(done: Outcome, num_runs: int) -> None:
    """One line on the runs of a sweep that were left alone."""
    if not done.left:
        return
    complete = 0
    halved = 0
    for why in done.left.values():
        complete += why == "complete"
        halved += why.startswith("stopped by halving")
    queued = len(done.left) - complete - halved
    stopped = ""
    if halved:
        stopped = f", {halved:,} stopped by halving (halving.rungs=[] resumes them)"
    print(
        f"not submitted: of {num_runs:,} runs {complete:,} are complete{stopped} and {queued:,} "
        "queued or running"
    )


def _print_next(done: Outcome, runs: Sequence[PlannedRun]) -> None:
    first = runs[0].config
    numbers = [str(job.job_id) for job in done.jobs]
    root = str(identity.root_of(first))
    print("next:")
    if numbers:
        print(f"  squeue --jobs={','.join(numbers)}")
    print(f"  {hints.command('status', root)}")
    if done.waiting or not first.recovery.successor:
        print(
            f"  {hints.command('watchdog', root)}      # keeps them going: in tmux, or "
            "sbatch/watchdog.sbatch"
        )
    if numbers:
        print(f"  scancel {' '.join(numbers)}")
    for run in runs:
        if run.config.cluster.device != "cpu":
            _print_build(run.config)
            return


def _print_build(config: RunConfig) -> None:
    """The command that compiles what the optimizer needs on GPUs, if it needs anything."""
    if operators.needed(config.optim.name, "cuda"):
        words = (f"+cluster={config.cluster.name}", f"optim={config.optim.name}")
        print(f"  {hints.command('build', *words)}      # once, if not done yet")
