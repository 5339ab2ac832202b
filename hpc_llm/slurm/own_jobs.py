"""Which of Slurm's jobs are ours: by their folders, never by their numbers alone.

Numbers come again: after a new database of Slurm's, at MaxJobId, in another cluster.

`find` is the one search before anything is submitted again. The answer to an sbatch can be lost,
and its sender can die before it has recorded the job. Then the job is recognised by its name,
folder and tasks, and by not being one that was known before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable

from hpc_llm.slurm.records import JobLife, QueuedJob


def find(
    queue: Iterable[QueuedJob],
    folders: Collection[str],
    *,
    folder_of: Callable[[str], str] = str,
    name: str | None = None,
    tasks: Collection[str] | None = None,
    known: Collection[int] | Collection[str] = (),
    ended: bool = False,
) -> list[QueuedJob]:
    """The jobs of `queue` that were submitted for one of `folders`, in the order of the queue.

    folder_of: what of a job's working directory is compared with `folders`. By default all of it,
    as Slurm shows it: right where the searcher spells paths as the sender did. Else `resolved` or
    `run_of_code`.
    name: of the job; None where a folder has jobs of one kind alone.
    tasks: the array indices that are looked for, as in an address: "" for a single job; None: any.
    known: numbers of jobs and arrays, or addresses, that are not meant.
    ended: include jobs that have ended: a submission whose job has failed already was accepted all
    the same. Without it, what has ended keeps nobody from submitting again.
    """
    jobs = []
    for job in queue:
        if not ended and not job.live:
            continue
        if tasks is not None and task_of(job) not in tasks:
            continue
        if job.array_id in known or job.address in known:
            continue
        if name is not None and job.name != name:
            continue
        if folder_of(job.work_dir) in folders:  # last, for it may ask the file system
            jobs.append(job)
    return jobs


def is_for_run(job: QueuedJob | JobLife, run: str, *, in_array: bool) -> bool:
    """Whether a job that bears the number of one of the run's was submitted for the run.

    run: its directory. in_array: whether the run's job is a task of its sweep's array, which starts
    in the sweep's folder. Where accounting does not say in which folder the job started, its name
    has to do.
    """
    if not job.work_dir:
        sweep, name = os.path.split(run)
        return job.name in ("", os.path.basename(sweep) if in_array else name)  # noqa: PTH119
    folder = os.path.dirname(run) if in_array else os.path.join(run, "code")  # noqa: PTH118, PTH120
    if job.work_dir == folder:
        return True
    if in_array:
        return resolved(job.work_dir) == resolved(folder)
    return run_of_code(job.work_dir) == resolved(run)


def task_of(job: QueuedJob) -> str:
    """The index of an array's task; "" for a single job."""
    return job.address.partition("_")[2]


def resolved(work_dir: str) -> str:
    """The folder without links: whoever submitted may have come to it by another path."""
    return os.path.realpath(work_dir)


def run_of_code(work_dir: str) -> str:
    """The run directory of a single job, which starts in RUN/code.

    That is a link to the code's snapshot, which many runs share, so it is not followed.
    """
    return os.path.realpath(os.path.dirname(work_dir))  # noqa: PTH120 – no file system is asked
