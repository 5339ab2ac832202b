"""Submit one batch script to Slurm exactly once.

If the answer is lost, the job is looked for before anything else.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_llm.runs import event_names, extension, ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import read_story
from hpc_llm.slurm import client, command, own_jobs
from hpc_llm.slurm.records import Submission

LOOK_S = 20.0  # a slow slurmctld may still take a submission whose sbatch has given up
PATIENCE_S = 60.0  # while slurmctld does not answer at all
_AGAIN_S = 1.0
_MOST_CLOCK_SKEW_S = 600.0  # an attempt of an earlier job of the same number is older by more


class MaybeQueued(client.SlurmUnavailable):
    """It is not known whether the job exists."""


class QueuedNotRecorded(MaybeQueued):
    """Slurm has the job, and what is written of it is not complete."""


def send(
    script: Path, *, name: str, work_dir: Path, known: Collection[int], options: Sequence[str] = ()
) -> Submission:
    """The job (or array) that `script` makes with sbatch's `options`, submitted once.

    `known` are the ids of this user's earlier jobs. SlurmRefused: Slurm refused. SlurmUnavailable:
    the answer was lost and there is no such job. MaybeQueued: it was lost and Slurm does not
    answer.
    """
    from hpc_llm.slurm import executor  # submitit takes 0.1 s to import

    try:
        return executor.submit(script, options)
    except client.SlurmUnavailable as error:
        number = _look_for(name, work_dir, known, str(error))
        if number is None:
            raise client.SlurmUnavailable(
                f"{error}; no job {name} is queued, so nothing was submitted"
            ) from None
        return Submission(number)


@contextlib.contextmanager
def recording(number: int) -> Iterator[None]:
    """Around what is written once Slurm has accepted job `number`.

    QueuedNotRecorded where it fails, for nothing is undone.
    """
    try:
        yield
    except OSError as error:
        raise QueuedNotRecorded(
            f"job {number} is queued, though not all of it could be recorded ({error}); squeue "
            f"--jobs={number} shows it, and submitting again checks first"
        ) from None


def record_submitted(runs: Mapping[str, RunLayout], sent_at: float, **facts: Any) -> None:
    """Record in the ledgers of `runs` (by job address) that they were submitted.

    sent_at: before sbatch was called. The first of a thousand tasks may start before the last
    ledger is written, and attempts older than a submission do not count for it.
    """
    for address, run in runs.items():
        array, _, task = address.partition("_")
        ledger.Ledger(run.ledger, "submit").write_at(
            sent_at,
            event_names.SUBMITTED,
            job=address,
            job_id=int(array),
            array_task=int(task) if task else None,
            host=os.uname().nodename,
            clusters=command.named_cluster(os.environ),
            after_attempt=_newest_attempt_before(run, address, sent_at),
            code=run.code_hash(),
            steps=extension.planned_steps(run),
            **facts,
        )


def _newest_attempt_before(run: RunLayout, address: str, sent_at: float) -> int:
    """The newest attempt that is not of the job just sent, which may have begun already."""
    newest = 0
    for attempt in read_story(run.ledger).attempts:
        skew_s = _MOST_CLOCK_SKEW_S if attempt.job == address else 0.0
        of_this_job = attempt.job in (address, None) and attempt.time >= sent_at - skew_s
        if not of_this_job:
            newest = max(newest, attempt.number)
    return newest


def _look_for(name: str, work_dir: Path, known: Collection[int], why: str) -> int | None:
    """The new job of this name and folder, once Slurm answers; None if it has none after LOOK_S."""
    start = time.monotonic()
    while True:
        try:
            queue = client.queued()
        except client.SlurmUnavailable as error:
            if time.monotonic() - start > PATIENCE_S:
                raise MaybeQueued(
                    f"{why}; then {error}: it is not known whether Slurm accepted job {name}; "
                    f"squeue --me --name={name} shows it once Slurm answers, and submitting "
                    "again checks first"
                ) from None
        else:
            jobs = own_jobs.find(queue, {str(work_dir)}, name=name, known=known, ended=True)
            if jobs:
                return max(job.array_id for job in jobs)
            if time.monotonic() - start > LOOK_S:
                return None
        time.sleep(_AGAIN_S)
