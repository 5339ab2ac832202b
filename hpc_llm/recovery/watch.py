"""One run seen from outside its allocation → what the watchdog does about it. Pure.

Slurm is asked rarely and together; what could not be asked is unknown, and nothing follows from it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_llm.recovery.policy import Budgets, Ended, exhausted
from hpc_llm.slurm.records import JobLife, QueuedJob

EXPEDITE_FROM_S = 5.0  # a requeued job that has less to wait is left alone
ORPHAN_AFTER_S = 180.0  # a running job whose supervisor has been silent for this long has nobody in it
FORGOTTEN_AFTER_S = 300.0  # MinJobAge: how long squeue may know a job that sacct does not show yet


class Act(str, enum.Enum):
    """What the watchdog does."""

    NOTHING = "nothing"
    EXPEDITE = "expedited"  # StartTime=now: the wait after a requeue (121 s) is gone
    RELEASE = "released"
    REQUEUE = "requeued"
    RESUBMIT = "resubmitted"
    GIVE_UP = "given-up"
    MARK_CANCELLED = "cancelled"


@dataclass(frozen=True)
class Action:
    act: Act
    why: str


@dataclass(frozen=True)
class RunFacts:
    """What a run's own directory tells. Times in seconds since the epoch."""

    address: str | None  # of the job last submitted for it, `12` or `12_3`
    submitted_at: float
    completed: bool
    final: str | None  # why it stopped for good: the cause of an end without restart, cancelled, given-up
    history: Sequence[Ended]
    budgets: Budgets
    heartbeat_at: float | None


@dataclass(frozen=True)
class JobFacts:
    """What Slurm tells of its job. asked: whether squeue answered; remembered: whether sacct did."""

    asked: bool
    queued: QueuedJob | None
    remembered: bool
    last_life: JobLife | None


NOTHING = Action(Act.NOTHING, "")
_LOST = {"PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "OUT_OF_MEMORY", "FAILED", "LAUNCH_FAILED", "COMPLETED"}


def decide(run: RunFacts, job: JobFacts, now: float) -> Action:
    """What to do about `run` at time `now`."""
    if run.completed or run.final is not None or run.address is None or not job.asked:
        return NOTHING
    if job.queued is not None and job.queued.live:
        return _alive(run, job.queued, now)
    state = job.queued.state if job.queued else job.last_life.state if job.last_life else None
    if state == "CANCELLED":
        return Action(Act.MARK_CANCELLED, "cancelled by its user: final")
    if state is None:
        if not job.remembered or now - run.submitted_at < FORGOTTEN_AFTER_S:
            return NOTHING  # without accounting a cancelled job and a lost one look alike
        return _again(run, "Slurm knows nothing of it any more")
    return _again(run, state) if state in _LOST else NOTHING


def _alive(run: RunFacts, job: QueuedJob, now: float) -> Action:
    if job.state == "PENDING":
        if "requeued held" in job.reason.lower():
            return Action(Act.RELEASE, job.reason)
        requeued = bool(run.history)
        if requeued and job.reason == "BeginTime" and (job.start_time or 0) - now > EXPEDITE_FROM_S:
            return Action(
                Act.EXPEDITE, f"{job.start_time - now:.0f} s to wait after a requeue" if job.start_time else ""
            )
        return NOTHING
    silent = now - max(run.heartbeat_at or 0.0, job.start_time or now)
    if job.state == "RUNNING" and silent > ORPHAN_AFTER_S:
        return Action(Act.REQUEUE, f"running with nobody in it for {silent:.0f} s")
    return NOTHING


def _again(run: RunFacts, why: str) -> Action:
    if spent := exhausted(run.history, run.budgets):
        return Action(Act.GIVE_UP, f"{why}; {spent}")
    return Action(Act.RESUBMIT, why)
