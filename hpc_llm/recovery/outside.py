"""One run seen from outside its allocation → what the watchdog does about it. Pure.

Slurm is asked rarely, about all jobs at once; if it does not answer, the state is unknown and
nothing is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hpc_llm.recovery.budgets import Ended, exhausted
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.observations import Canceller, JobAnswer, RunSummary
from hpc_llm.recovery.policy import FINAL, Action, Decision
from hpc_llm.runs import event_names
from hpc_llm.slurm import reasons
from hpc_llm.slurm.reasons import Hold
from hpc_llm.slurm.records import JobLife, QueuedJob

EXPEDITE_FROM_S = 5.0  # a requeued job with less time to wait is left alone
ORPHAN_AFTER_S = 180.0  # of silence, a running job's supervisor may be dead
# … and is, if a later pass finds the same: a file system that stood still kept all supervisors
# silent, and the watchdog may be the first that it serves again. As long as an NFS client may show
# an old time stamp (acregmax).
SURE_AFTER_S = 60.0
# Between the nodes that write ledgers and the controller that reports when a job started.
CLOCK_SKEW_S = 15.0
FORGOTTEN_AFTER_S = 300.0  # MinJobAge: how long squeue may know a job that sacct does not show yet

NOTHING = Decision(Action.NOTHING, "")
STUCK = "stuck: "  # see glance
_CAUSES = {
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "RECONFIG_FAIL": Cause.NODE_FAILURE,
    "TIMEOUT": Cause.TIME_LIMIT,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "LAUNCH_FAILED": Cause.LAUNCH_FAILED,
    "REQUEUED": Cause.LOST,
    "RESIZING": Cause.LOST,
    "FAILED": Cause.LOST,
    "COMPLETED": Cause.LOST,
}  # states of a job that ended though its run did not
_FINAL_STATES = {
    "DEADLINE": "its deadline has passed (--deadline in cluster.sbatch)",
    "REVOKED": "another cluster of the federation has taken it over",
}  # … and what a person should know of those that no resubmission would mend


class Silence(NamedTuple):
    """Of a running job's supervisor, for longer than ORPHAN_AFTER_S; in seconds since the epoch."""

    since: float  # its last heartbeat, or the start of the job
    seen_at: float  # by the first pass that saw it


NO_SILENCE = Silence(0.0, 0.0)


def glance(job: QueuedJob | None) -> str:
    """The kind of a job, by the queue alone: pending, event (needs a look), running or gone.

    Or `stuck: REASON`, of one that Slurm will not start. While the kind stays pending or stuck, or
    running with a fresh heartbeat, the run's directory need not be read again.
    """
    if job is None or not job.live:
        return "gone"
    if job.pending:
        waits_for_us = reasons.waits_to_begin(job) or reasons.hold_of(job) is not None
        if waits_for_us:
            return "event"
        return "pending" if reasons.remedy(job) is None else f"{STUCK}{job.reason}"
    return "running" if job.going_on else "event"


def starved(job: QueuedJob | None) -> bool:
    """Whether a job waits for nodes that are down."""
    return job is not None and reasons.lacks_nodes(job)


def decide_outside(
    run: RunSummary, job: JobAnswer, now: float, earlier: Silence = NO_SILENCE
) -> Decision:
    """What to do about `run` at time `now`. earlier: the silence that the last pass saw."""
    if not job.asked or run.address is None:
        return NOTHING
    if run.over:
        return _after_the_end(run, job, now)
    if job.queued is not None and job.queued.live:
        return _alive(run, job, job.queued, now, earlier)
    if job.successor is not None and job.successor.live:
        return NOTHING  # the successor is about to do what a watchdog would do
    if job.state == "CANCELLED":
        return _cancelled(run, job)
    if job.state is None:
        if not job.remembered or now - run.submitted_at < FORGOTTEN_AFTER_S:
            return NOTHING  # without accounting a cancelled job and a lost one look alike
        why = "Slurm no longer knows the job"
        if job.stranger is not None:
            why = f"{why}: its number is now that of another one, {job.stranger}"
        return _resubmit(run, why, Cause.UNKNOWN)
    began = run.began and began_in(run, job.life_start, job.life_number)
    if job.state not in _CAUSES:
        return Decision(Action.STOP, _strange_end(job.state), cause=Cause.UNKNOWN)
    return _resubmit(replace(run, began=began), job.state, _CAUSES[job.state])


def cause_of(state: str) -> Cause:
    """The cause of an attempt's end by the state in which its job ended."""
    return _CAUSES.get(state, Cause.LOST)


def needs_user(run: RunSummary, job: JobAnswer) -> str | None:
    """Why the run's job waits for what Slurm and a watchdog never do by themselves, and the remedy.

    None for one that may go on.
    """
    queued = job.queued
    if run.over or queued is None or not queued.live:
        return None
    remedy = reasons.remedy(queued)
    if remedy is not None:
        reason = queued.state if queued.reason in ("", "None") else queued.reason
        return f"{reason}: {remedy}"
    if queued.pending or queued.going_on:
        return None
    return f"Slurm has job {queued.address} in state {queued.state}, which hpc_llm does not know"


def silence(run: RunSummary, job: JobAnswer, now: float, earlier: Silence) -> Silence:
    """That of the run's supervisor now: `earlier` if it has not been broken since."""
    if job.queued is None or not job.queued.running:
        return NO_SILENCE
    since = max(run.heartbeat_at or 0.0, job.queued.start_time or now)
    if now - since <= ORPHAN_AFTER_S:
        return NO_SILENCE
    return earlier if earlier.since == since else Silence(since, now)


def charged(run: RunSummary, cause: Cause) -> list[Ended]:
    """The history with `cause` as the end of the job that was last seen.

    A job in which no attempt began failed to launch; an attempt that did not record its end was
    ended by `cause`.
    """
    history = list(run.history)
    if not run.began or cause is Cause.LAUNCH_FAILED:
        step = history[-1].checkpoint_step if history else 0
        return [*history, Ended(_never_began(cause), step, step, 0.0)]
    if run.lost:
        history[-1] = replace(history[-1], cause=cause)
    return history


def began_in(run: RunSummary, life_start: float | None, life_number: int | None = None) -> bool:
    """Whether an attempt began in that life of the job; None: it is not known.

    Slurm requeues a job without a note in the ledger: an attempt of an earlier life says nothing
    about this one. An attempt tells its job and how often Slurm had restarted it; the clock of its
    node is compared with the controller's only where the life's number is not known. sacct may lack
    lives, so that `life_number` is too small, never too large.
    """
    if life_number is not None and run.started_in is not None and run.started_life is not None:
        return run.started_in == run.address and run.started_life >= life_number
    if run.started_at is None or life_start is None:
        return run.began
    return run.started_at >= life_start - CLOCK_SKEW_S


def _after_the_end(run: RunSummary, job: JobAnswer, now: float) -> Decision:
    """A run that has ended needs no job.

    Neither a waiting successor, nor one that the site has requeued.
    """
    if run.final == event_names.HALVED and job.live:
        return Decision(Action.FREE, "stopped by halving")
    end = run.final or "completed"
    if job.successor is not None and job.successor.pending:
        why = f"{end}: job {job.successor.address} has nothing to do"
        return Decision(Action.WITHDRAW, why)
    queued = job.queued
    if queued is None or not queued.pending or not run.history:
        return NOTHING
    if run.completed and job.awaited:
        # Only its end in the queue lets them start, and a scancel would be no success.
        if reasons.waits_to_begin(queued) and _wait_s(queued, now) > EXPEDITE_FROM_S:
            return Decision(Action.EXPEDITE, f"{end}: other jobs wait for the end of this one")
        return NOTHING
    if run.completed:
        return Decision(Action.WITHDRAW, f"{end}: requeued by Slurm, it has nothing to do")
    if job.site_requeues and run.final != event_names.CANCELLED:
        return Decision(Action.WITHDRAW, f"{end}: requeued by the site's RequeueExit")
    return NOTHING


def _wait_s(job: QueuedJob, now: float) -> float:
    return (job.start_time or now) - now


def _cancelled(run: RunSummary, job: JobAnswer) -> Decision:
    if job.canceller is Canceller.NOT_YET:
        return NOTHING
    if job.canceller is Canceller.USER:
        why = "cancelled by its user: final"
        return Decision(Action.MARK_CANCELLED, why, cause=Cause.CANCELLED)
    if job.canceller is Canceller.NOT_TOLD:
        why = "cancelled, and Slurm does not say by whom: final, as if by its user; submit it again"
        return Decision(Action.MARK_CANCELLED, why, cause=Cause.CANCELLED)
    began = run.began and began_in(run, job.life_start, job.life_number)
    why = "cancelled by another user"
    if run.holds_after_admin_cancel:
        why = f"{why}: held until you release it"
    decision = _resubmit(replace(run, began=began), why, Cause.ADMIN_CANCEL)
    return replace(decision, hold=run.holds_after_admin_cancel)


def _never_began(cause: Cause) -> Cause:
    """What a job in which no attempt began is charged to, if it ended by `cause`."""
    return cause if cause is Cause.ADMIN_CANCEL else Cause.LAUNCH_FAILED


def _strange_end(state: str) -> str:
    remedy = _FINAL_STATES.get(state, "hpc_llm does not know that state")
    return f"Slurm ended the job as {state}: {remedy}; submit it again to go on"


def _alive(
    run: RunSummary, job: JobAnswer, queued: QueuedJob, now: float, earlier: Silence
) -> Decision:
    if queued.pending:
        return _pending(run, job, queued, now)
    silent = silence(run, job, now, earlier)
    if silent is NO_SILENCE or now - silent.seen_at < SURE_AFTER_S:
        return NOTHING
    cause = Cause.LAUNCH_FAILED
    if run.began and began_in(run, queued.start_time, job.life_number):
        cause = Cause.ORPHANED
    why = f"running, but its supervisor has been silent for {now - silent.since:.0f} s"
    return _unless_exhausted(run, charged(run, cause), Decision(Action.REQUEUE, why, cause=cause))


def _pending(run: RunSummary, seen: JobAnswer, job: QueuedJob, now: float) -> Decision:
    hold = reasons.hold_of(job)
    if hold is not None and hold not in (Hold.FAILED_LAUNCH, Hold.EXIT_CODE):
        return NOTHING  # whoever holds it releases it: see needs_user
    if hold is Hold.FAILED_LAUNCH:
        history = charged(replace(run, began=False), Cause.LAUNCH_FAILED)
        release = Decision(Action.RELEASE, job.reason, cause=Cause.LAUNCH_FAILED)
        return _unless_exhausted(run, history, release)
    if not run.history and seen.last_life is None:
        return NOTHING  # in the queue for the first time
    cause = _untold_cause(run, seen.last_life)
    history = list(run.history)
    if cause is not None:
        history = charged(replace(run, began=True), cause)
    if stop := _stop(run, history, Decision(Action.REQUEUE, "requeued", cause=cause)):
        return stop
    if hold is Hold.EXIT_CODE:
        return Decision(Action.RELEASE, job.reason, cause=cause)
    wait_s = _wait_s(job, now)
    if reasons.waits_to_begin(job) and wait_s > EXPEDITE_FROM_S:
        return Decision(Action.EXPEDITE, f"{wait_s:.0f} s to wait after a requeue", cause=cause)
    return NOTHING


def _untold_cause(run: RunSummary, life: JobLife | None) -> Cause | None:
    """How the last life of a requeued job ended, if the ledger does not say so yet."""
    if life is None:
        return None
    if began_in(run, life.start_time, life.number):
        return cause_of(life.state) if run.lost else None
    failed = life.state in _CAUSES and life.state != "PREEMPTED" and life.start_time is not None
    if failed and life.start_time != run.charged_life:
        return Cause.LAUNCH_FAILED
    return None


def _resubmit(run: RunSummary, why: str, cause: Cause) -> Decision:
    if not run.began:
        cause = _never_began(cause)
    return _unless_exhausted(run, charged(run, cause), Decision(Action.RESUBMIT, why, cause=cause))


def _unless_exhausted(run: RunSummary, history: Sequence[Ended], decision: Decision) -> Decision:
    return _stop(run, history, decision) or decision


def _stop(run: RunSummary, history: Sequence[Ended], instead: Decision) -> Decision | None:
    """The end of the run, if after `history` nothing is left that `instead` could spend."""
    if history and history[-1].cause in FINAL:
        why = f"{instead.why}; {history[-1].cause}: a restart would not help"
        return Decision(Action.STOP, why, cause=instead.cause)
    spent = exhausted(history, run.budgets)
    if spent is None:
        return None
    return Decision(Action.STOP, f"{instead.why}; {spent}", cause=instead.cause)
