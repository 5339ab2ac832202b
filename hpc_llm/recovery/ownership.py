"""Whether the job that Slurm has under a run's number is the run's.

A new database of Slurm's starts its numbers again, and they wrap round: what is requeued, cancelled
or believed because of its number alone may be a stranger's. Of several clusters behind one login
node, each has its own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpc_llm.runs import event_names
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import Story
from hpc_llm.slurm import command, own_jobs
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


def other_cluster(story: Story, environment: Mapping[str, str]) -> str | None:
    """Where the run's job lives, if Slurm's commands ask another cluster here; one sentence.

    A submission notes the cluster that its user had named. A job knows its own cluster, also where
    its environment names none.
    """
    submitted = story.last(event_names.SUBMITTED)
    if submitted is None or "clusters" not in submitted.facts:
        return None
    named = submitted.facts["clusters"]
    asked = command.named_cluster(environment)
    if asked is None and named is not None:
        asked = environment.get("SLURM_CLUSTER_NAME")
    if named == asked:
        return None
    if named is None:
        return f"submitted without SLURM_CLUSTERS, which is {asked} here: unset it"
    return f"submitted to another cluster: export SLURM_CLUSTERS={named}"
