"""Why Slurm lets a job wait: the words that squeue prints as its reason."""

from __future__ import annotations

import enum
import re

from hpc_llm.slurm.records import HELD, QueuedJob


class Hold(enum.Enum):
    """What keeps a job from being scheduled until somebody releases it."""

    FAILED_LAUNCH = "failed-launch"  # a node did not start it
    EXIT_CODE = "exit-code"  # the site's RequeueExitHold
    USER = "user"  # its own
    PERSON = "person"  # an administrator, or Slurm for one


# `launch failed requeued held`; `launch failure limit exceeded requeued held` since 23.02, `user
# env retrieval failed requeued held` since 25.05.
_FAILED_LAUNCH = re.compile(
    r"fail(ed|ure)\b.* requeued held|launch ?failed|launchfailure|maxrequeue"
)
# Slurm's list of reasons (job_reason_str) whose cause is not that others have the nodes now. Each:
# what the first word of the reason looks like, and what helps.
_REMEDIES = {
    r"DependencyNeverSatisfied": "what it waits for has failed: submit that again, then this one",
    r"PartitionDown|PartitionInactive": (
        "its partition takes no jobs: ask your administrators, or choose another cluster.partition"
    ),
    r"Partition(NodeLimit|TimeLimit|Config|MinNodes|MaxNodes)": (
        "its partition does not allow so many nodes or so much time: see cluster.nodes, "
        "cluster.time_min and cluster.partition"
    ),
    r"BadConstraints": "no node has what it asks for: see cluster.sbatch and cluster.gpu_request",
    r"(QOS|Assoc)Max\w*Per(Job|Node)\w*|QOSMin\w*|MaxMemPerLimit|AssociationTimeLimit": (
        "it asks for more, or less, than its account or QOS allows one job: see cluster.account "
        "and cluster.qos"
    ),
    r"(QOS|Assoc)Grp(?!\w*RunMin)\w*(Minutes(Limit)?|WallLimit)": (
        "the hours of its account or QOS are spent: ask for more, or choose another cluster.account"
    ),
    r"InvalidAccount|AccountNotAllowed": "choose another cluster.account",
    r"InvalidQOS|QOSNotAllowed": "choose another cluster.qos",
    r"Reservation(Deleted|Invalid)|InvalidReservation|ResvDelHold": (
        "its reservation is gone: choose another cluster.reservation"
    ),
    r"BurstBufferOperation": "its burst buffer failed: ask your administrators",
    r"Dead[Ll]ine": "it cannot end before its deadline: see cluster.sbatch",
}


def hold_of(job: QueuedJob) -> Hold | None:
    """What holds the job; None if it is not held."""
    reason = job.reason.lower().replace("_", " ")
    if _FAILED_LAUNCH.search(reason):
        return Hold.FAILED_LAUNCH
    if "requeued in held state" in reason:
        return Hold.EXIT_CODE
    if "helduser" in reason:
        return Hold.USER
    if "held" in reason or "special exit" in reason or job.state in HELD:
        return Hold.PERSON
    return None


def remedy(job: QueuedJob) -> str | None:
    """What a person does about a job that Slurm will not start by itself.

    None for one that it may start, that a watchdog releases, or that its user holds.
    """
    if not job.pending:
        return None
    hold = hold_of(job)
    if hold is Hold.PERSON:
        return f"held by an administrator or by Slurm: scontrol release {job.address}"
    if hold is not None:
        return None
    first_word = re.match(r"\w*", job.reason)
    for pattern, what_helps in _REMEDIES.items():
        if first_word is not None and re.fullmatch(pattern, first_word[0]):
            return f"{what_helps}; scancel {job.address} ends the waiting"
    return None


def waits_to_begin(job: QueuedJob) -> bool:
    """Whether its earliest start is still to come, as in the two minutes after a requeue."""
    return job.reason == "BeginTime"


def lacks_nodes(job: QueuedJob) -> bool:
    """Whether it waits for nodes that are down: `ReqNodeNotAvail, UnavailableNodes:n[2-3]`."""
    return job.pending and "UnavailableNodes:" in job.reason
