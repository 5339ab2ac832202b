"""Why Slurm lets a job wait: the words that squeue prints as its reason."""

from __future__ import annotations

import enum

from hpc_llm.slurm.records import QueuedJob


class Hold(enum.Enum):
    """What keeps a job from being scheduled until somebody releases it."""

    FAILED_LAUNCH = "failed-launch"  # a node did not start it
    EXIT_CODE = "exit-code"  # the site's RequeueExitHold
    PERSON = "person"


def hold_of(job: QueuedJob) -> Hold | None:
    """What holds the job; None if it is not held."""
    reason = job.reason.lower().replace("_", " ")
    if "launch failed" in reason or "launchfailure" in reason or "maxrequeue" in reason:
        return Hold.FAILED_LAUNCH
    if "requeued in held state" in reason:
        return Hold.EXIT_CODE
    if "held" in reason or "special exit" in reason or job.state == "SPECIAL_EXIT":
        return Hold.PERSON
    return None


def waits_to_begin(job: QueuedJob) -> bool:
    """Whether its earliest start is still to come, as in the two minutes after a requeue."""
    return job.reason == "BeginTime"


def lacks_nodes(job: QueuedJob) -> bool:
    """Whether it waits for nodes that are down: `ReqNodeNotAvail, UnavailableNodes:n[2-3]`."""
    return job.pending and "UnavailableNodes:" in job.reason
