"""Whether the job that Slurm has under a run's number is the run's.

A new database of Slurm's starts its numbers again, and they wrap round: what is requeued, cancelled
or believed because of its number alone may be a stranger's.
"""

from __future__ import annotations

from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import Story
from hpc_llm.slurm import own_jobs
from hpc_llm.slurm.records import JobLife, QueuedJob


def is_of_run(job: QueuedJob | JobLife, address: str, layout: RunLayout, story: Story) -> bool:
    """Whether `job`, found at `address`, is the run's.

    A job that we submitted starts in the run's folder, whatever its user calls it afterwards. One
    whose script somebody wrote by hand starts anywhere: it bears the name that it had when an
    attempt began in it.
    """
    if own_jobs.is_for_run(job, str(layout.path), in_array="_" in address):
        return True
    if story.was_submitted_as(address):
        return False
    names = {attempt.job_name for attempt in story.attempts if attempt.job == address}
    return not names or None in names or job.name in names
