"""One run seen from outside its allocation → what the watchdog does about it. Pure.

Slurm is asked rarely, about all jobs at once; if it does not answer, the state is unknown and
nothing is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import FINAL, Action, Budgets, Decision, Ended, exhausted
from hpc_llm.runs import event_names
from hpc_llm.slurm import reasons
from hpc_llm.slurm.reasons import Hold
from hpc_llm.slurm.records import JobLife, QueuedJob

EXPEDITE_FROM_S = 5.0  # a requeued job with less time to wait is left alone
ORPHAN_AFTER_S = (
    180.0  # a running job whose supervisor has been silent for this long may be an orphan
)
# … and is one if a later pass finds the same: a file system that stood still kept all supervisors
# silent, and the watchdog may be the first that it serves again. As long as an NFS client may show
# an old time stamp (acregmax).
SURE_AFTER_S = 60.0
CLOCK_SKEW_S = (
    15.0  # between the nodes that write ledgers and the controller that reports when a job started
)
FORGOTTEN_AFTER_S = 300.0  # MinJobAge: how long squeue may know a job that sacct does not show yet

NOTHING = Decision(Action.NOTHING, "")
_CAUSES = {
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "TIMEOUT": Cause.TIME_LIMIT,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "LAUNCH_FAILED": Cause.LAUNCH_FAILED,
    "FAILED": Cause.LOST,
    "COMPLETED": Cause.LOST,
}  # states of a job that ended though its run did not


@dataclass(frozen=True)
class RunFacts:
    """What a run's own directory tells. Times in seconds since the epoch."""

    address: str | None  # of the job last submitted for the run, `12` or `12_3`
    submitted_at: float
    completed: bool
    final: (
        str | None
    )  # why it stopped for good: the cause of an end without restart, cancelled, given-up
    history: Sequence[Ended]
    budgets: Budgets
    heartbeat_at: float | None
    attempt: int = 0  # number of the newest attempt
    began: bool = True  # whether an attempt began since the job was last sent, released or requeued
    started_at: float | None = None  # of the newest attempt
    charged_life: float | None = (
        None  # start of the job life for which a launch failure was last charged
    )
    successor: str | None = None  # a job that waits for the end of this one (recovery.successor)
    sent_at: float | None = None  # time of a submission whose answer is not in the ledger


class Silence(NamedTuple):
    """Of a running job's supervisor, for longer than ORPHAN_AFTER_S. Times in seconds since the
    epoch.
    """

    since: float  # its last heartbeat, or the start of the job
    seen_at: float  # by the first pass that saw it


NO_SILENCE = Silence(0.0, 0.0)


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says about the run's job. asked: whether squeue answered; remembered: whether
    sacct did.
    """

    asked: bool
    queued: QueuedJob | None
    remembered: bool
    last_life: JobLife | None
    successor: QueuedJob | None = None
    site_requeues: bool = (
        False  # RequeueExit: Slurm itself requeues jobs because of their exit code
    )

    @property
    def _life(self) -> QueuedJob | JobLife | None:
        """The job's present life, or its last one while it is queued or forgotten."""
        return (
            self.queued if self.queued is not None and not self.queued.pending else self.last_life
        )

    @property
    def life_start(self) -> float | None:
        """When that life began; None where Slurm does not say."""
        return self._life.start_time if self._life is not None else None

    def life_hours(self, now: float) -> float:
        """How long that life has held its nodes, as far as Slurm says."""
        if self._life is None or self._life.start_time is None:
            return 0.0
        end = (
            self._life.end_time
            if isinstance(self._life, JobLife)
            else now
            if self._life.live
            else None
        )
        return max(0.0, end - self._life.start_time) / 3600 if end is not None else 0.0

    @property
    def life_nodes(self) -> str:
        """The nodes of that life, as Slurm writes them; for a job that has ended, perhaps from
        sacct only.
        """
        told = (one.node_list for one in (self._life, self.last_life) if one is not None)
        return next(filter(None, told), "")


def glance(job: QueuedJob | None) -> str:
    """What kind of job this is judging by the queue alone: pending, event (needs a look), running
    or gone.

    While the kind stays pending, or running with a fresh heartbeat, the run's directory need not be
    read again.
    """
    if job is None or not job.live:
        return "gone"
    if job.pending:
        waits_for_us = reasons.waits_to_begin(job) or reasons.hold_of(job) is not None
        return "event" if waits_for_us else "pending"
    return "running" if job.going_on else "event"


def starved(job: QueuedJob | None) -> bool:
    """Whether a job waits for nodes that are down."""
    return job is not None and reasons.lacks_nodes(job)


def decide_outside(
    run: RunFacts, job: JobFacts, now: float, earlier: Silence = NO_SILENCE
) -> Decision:
    """What to do about `run` at time `now`. earlier: the silence that the last pass saw."""
    if not job.asked or run.address is None:
        return NOTHING
    if run.completed or run.final is not None:
        return _over(run, job)
    if job.queued is not None and job.queued.live:
        return _alive(run, job, now, earlier)
    if job.successor is not None and job.successor.live:
        return NOTHING  # the successor is about to do what a watchdog would do
    state = job.queued.state if job.queued else job.last_life.state if job.last_life else None
    if state == "CANCELLED":
        return Decision(
            Action.MARK_CANCELLED, "cancelled by its user: final", cause=Cause.CANCELLED
        )
    if state is None:
        if not job.remembered or now - run.submitted_at < FORGOTTEN_AFTER_S:
            return NOTHING  # without accounting a cancelled job and a lost one look alike
        return _again(run, "Slurm no longer knows the job", Cause.UNKNOWN)
    begun = run.began and began_in(run, job.life_start)
    return _again(replace(run, began=begun), state, _CAUSES[state]) if state in _CAUSES else NOTHING


def silence(run: RunFacts, job: JobFacts, now: float, earlier: Silence) -> Silence:
    """That of the run's supervisor now: `earlier` if it has not been broken since."""
    if job.queued is None or not job.queued.running:
        return NO_SILENCE
    since = max(run.heartbeat_at or 0.0, job.queued.start_time or now)
    if now - since <= ORPHAN_AFTER_S:
        return NO_SILENCE
    return earlier if earlier.since == since else Silence(since, now)


def charged(run: RunFacts, cause: Cause) -> list[Ended]:
    """The history with `cause` as the end of the job that was last seen.

    A job in which no attempt began failed to launch; an attempt that did not record its end was
    ended by `cause`.
    """
    history = list(run.history)
    if not run.began or cause is Cause.LAUNCH_FAILED:
        step = history[-1].checkpoint_step if history else 0
        return [*history, Ended(Cause.LAUNCH_FAILED, step, step, 0.0)]
    if history and history[-1].cause is Cause.LOST:
        history[-1] = replace(history[-1], cause=cause)
    return history


def began_in(run: RunFacts, life_start: float | None) -> bool:
    """Whether an attempt began in the life of the job that started at `life_start`; None: start
    time unknown.

    Slurm requeues a job without a note in the ledger: an attempt of an earlier life says nothing
    about this one.
    """
    if run.started_at is None or life_start is None:
        return run.began
    return run.started_at >= life_start - CLOCK_SKEW_S


def _over(run: RunFacts, job: JobFacts) -> Decision:
    """A run that has ended needs no job: neither a waiting successor nor one that the site has
    requeued.
    """
    if run.final == event_names.HALVED and job.queued is not None and job.queued.live:
        return Decision(Action.FREE, "stopped by halving")
    if job.successor is not None and job.successor.pending:
        return Decision(
            Action.WITHDRAW,
            f"{run.final or 'completed'}: job {job.successor.address} has nothing to do",
        )
    again = job.queued is not None and job.queued.pending and bool(run.history)
    if again and job.site_requeues and run.final != event_names.CANCELLED:
        return Decision(
            Action.WITHDRAW, f"{run.final or 'completed'}: requeued by the site's RequeueExit"
        )
    return NOTHING


def _alive(run: RunFacts, job: JobFacts, now: float, earlier: Silence) -> Decision:
    queued = job.queued
    assert queued is not None
    if queued.pending:
        return _pending(run, queued, job.last_life, now)
    silent = silence(run, job, now, earlier)
    if silent is not NO_SILENCE and now - silent.seen_at >= SURE_AFTER_S:
        cause = (
            Cause.ORPHANED
            if run.began and began_in(run, queued.start_time)
            else Cause.LAUNCH_FAILED
        )
        why = f"running, but its supervisor has been silent for {now - silent.since:.0f} s"
        return _spent(charged(run, cause), run, why, cause) or Decision(
            Action.REQUEUE, why, cause=cause
        )
    return NOTHING


def _pending(run: RunFacts, job: QueuedJob, life: JobLife | None, now: float) -> Decision:
    hold = reasons.hold_of(job)
    if hold is Hold.PERSON:
        return NOTHING
    if hold is Hold.FAILED_LAUNCH:
        history = charged(replace(run, began=False), Cause.LAUNCH_FAILED)
        cause = Cause.LAUNCH_FAILED
        return _spent(history, run, job.reason, cause) or Decision(
            Action.RELEASE, job.reason, cause=cause
        )
    if not run.history and life is None:
        return NOTHING  # in the queue for the first time
    end = _untold(run, life)
    if stop := _spent(
        charged(replace(run, began=True), end) if end else run.history, run, "requeued", end
    ):
        return stop
    if hold is Hold.EXIT_CODE:
        return Decision(Action.RELEASE, job.reason, cause=end)
    wait_s = (job.start_time or now) - now
    if reasons.waits_to_begin(job) and wait_s > EXPEDITE_FROM_S:
        return Decision(Action.EXPEDITE, f"{wait_s:.0f} s to wait after a requeue", cause=end)
    return NOTHING


def _untold(run: RunFacts, life: JobLife | None) -> Cause | None:
    """How the last life of a requeued job ended, if the ledger does not say so yet."""
    if life is None:
        return None
    if began_in(run, life.start_time):
        silent = bool(run.history) and run.history[-1].cause is Cause.LOST
        return _CAUSES.get(life.state, Cause.LOST) if silent else None
    failed = life.state in _CAUSES and life.state != "PREEMPTED" and life.start_time is not None
    return Cause.LAUNCH_FAILED if failed and life.start_time != run.charged_life else None


def _again(run: RunFacts, why: str, cause: Cause) -> Decision:
    cause = cause if run.began else Cause.LAUNCH_FAILED
    return _spent(charged(run, cause), run, why, cause) or Decision(
        Action.RESUBMIT, why, cause=cause
    )


def _spent(
    history: Sequence[Ended], run: RunFacts, why: str, cause: Cause | None
) -> Decision | None:
    if history and history[-1].cause in FINAL:
        return Decision(
            Action.STOP, f"{why}; {history[-1].cause}: a restart would not help", cause=cause
        )
    spent = exhausted(history, run.budgets)
    return Decision(Action.STOP, f"{why}; {spent}", cause=cause) if spent else None
