"""Which runs of a submission are left alone: those that are queued, complete, or halved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery.ownership import is_of_run, other_cluster
from hpc_llm.recovery.run_record import read_record
from hpc_llm.runs import event_names, extension
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.runs.story import Story, read_story
from hpc_llm.slurm import own_jobs
from hpc_llm.slurm.records import QueuedJob


def left_alone(runs: Sequence[PlannedRun], live: Sequence[QueuedJob]) -> dict[Path, str]:
    """The runs that must not be submitted (again), each with the reason.

    InputError where Slurm has an array of theirs that no ledger knows: they must not go out twice.
    """
    queue = _Queue(live)
    reasons: dict[Path, str] = {}
    known: set[int] = set()
    for run in runs:
        if not run.layout.path.exists():
            continue
        story = read_story(run.layout.ledger)
        _refuse_other_cluster(run.layout, story)
        known.update(_array_id(address) for address in story.jobs)
        job = queue.newest(run.layout, story) or queue.single_job(run.layout)
        if job is not None:
            reasons[run.layout.path] = f"job {job.address} is {job.state}"
            if extension.of(run.config.optim, run.plan, run.layout) is not None:
                reasons[run.layout.path] += f", for the {extension.KEY} that it had"
        elif story.has_reached(run.plan.steps):
            reasons[run.layout.path] = "complete"
        elif run.config.halving.rungs and (why := _halved(story)):
            reasons[run.layout.path] = f"stopped by halving: {why}"
    _refuse_lost_arrays(runs, live, known)
    return reasons


def _refuse_other_cluster(layout: RunLayout, story: Story) -> None:
    """InputError where the run's job may be alive in a cluster that this shell does not ask."""
    elsewhere = other_cluster(story, os.environ)
    if elsewhere is None:
        return
    with contextlib.suppress(OSError, ValueError, KeyError):
        if read_record(layout).summary.over:
            return
    raise InputError(
        f"run.name={layout.name}: its job {story.newest_job()} was {elsewhere} (scancel it there "
        "first to train it here)"
    )


class _Queue:
    """The jobs that are queued or hold nodes, by address and by the folder of a single job."""

    def __init__(self, live: Sequence[QueuedJob]) -> None:
        self._by_address: dict[str, QueuedJob] = {}
        self._by_folder: dict[str, QueuedJob] = {}
        for job in live:
            self._by_address[job.address] = job
            if not own_jobs.task_of(job):
                self._by_folder[job.work_dir] = job

    def newest(self, layout: RunLayout, story: Story) -> QueuedJob | None:
        """The last of the run's jobs that is there."""
        for address in reversed(story.jobs):
            job = self._by_address.get(address)
            if job is not None and is_of_run(job, address, layout, story):
                return job
        return None

    def single_job(self, layout: RunLayout) -> QueuedJob | None:
        """The job of a run that is not in an array, also if no ledger knows it."""
        return self._by_folder.get(str(layout.code))


def _array_id(address: str) -> int:
    return int(address.partition("_")[0])


def _halved(story: Story) -> str | None:
    """Why successive halving stopped the run, unless it was submitted again since."""
    submitted = story.last_sending(event_names.SUBMITTED)
    for end in reversed(story.ends):
        if end.name == event_names.HALVED and (submitted is None or end.follows(submitted)):
            return end.why
    return None


def _refuse_lost_arrays(
    runs: Sequence[PlannedRun], live: Sequence[QueuedJob], known: Collection[int]
) -> None:
    """InputError where an array is queued whose acceptance never reached us."""
    folders = {str(run.layout.path.parent) for run in runs if run.config.run.sweep is not None}
    lost = {job.array_id: job for job in own_jobs.find(live, folders, known=known)}
    if not lost:
        return
    known_to_others = _newest_arrays(folders)
    for number, job in lost.items():
        if number not in known_to_others:
            raise InputError(
                f"run.sweep={runs[0].config.run.sweep}: array {number} of this sweep ({job.name}) "
                "is queued, though an earlier submit could not learn of it; wait for it, or "
                f"scancel {number} and submit again"
            )


def _newest_arrays(folders: Collection[str]) -> set[int]:
    """The arrays that the runs of these sweeps were submitted in last."""
    numbers = set()
    for folder in folders:
        for run in SweepLayout(Path(folder)).runs():
            jobs = read_story(run.ledger).jobs
            if jobs:
                numbers.add(_array_id(jobs[-1]))
    return numbers
