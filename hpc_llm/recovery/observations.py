"""What a decision from outside rests on: what one run's directory tells, and what Slurm says."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_llm.recovery.budgets import Budgets, Ended
from hpc_llm.recovery.causes import Cause
from hpc_llm.slurm.records import JobLife, QueuedJob


class Canceller(enum.Enum):
    """Who cancelled a job."""

    USER = "user"  # the run's own
    OTHER = "other"  # an administrator
    NOT_TOLD = "not-told"  # and never will be: Slurm keeps no accounts
    NOT_YET = "not-yet"  # accounting is behind, or does not answer


@dataclass(frozen=True)
class RunSummary:
    """What a run's own directory tells. Times in seconds since the epoch."""

    address: str | None  # of the job last submitted for the run, `12` or `12_3`
    submitted_at: float
    completed: bool
    # why it stopped for good: the cause of an end without restart, cancelled, given-up, halved
    final: str | None
    history: Sequence[Ended]
    budgets: Budgets
    heartbeat_at: float | None
    attempt: int = 0  # number of the newest attempt
    began: bool = True  # whether an attempt began since the job was last sent, released or requeued
    started_at: float | None = None  # of the newest attempt
    started_in: str | None = None  # its job
    started_life: int | None = None  # how often Slurm had restarted that job
    charged_life: float | None = None  # start of the job life whose launch failure was charged last
    successor: str | None = None  # a job that waits for the end of this one (supervise.successor)
    sent_at: float | None = None  # of a submission whose answer is not in the ledger
    holds_after_admin_cancel: bool = False  # recovery.on_admin_cancel

    @property
    def over(self) -> bool:
        """Whether nothing more is to happen."""
        return self.completed or self.final is not None

    @property
    def lost(self) -> bool:
        """Whether the newest attempt did not record its end."""
        return bool(self.history) and self.history[-1].cause is Cause.LOST


@dataclass(frozen=True)
class UntoldEnd:
    """An attempt that another one has followed, and that did not record its end."""

    attempt: int
    life: JobLife | None  # of the job, as accounting remembers it


@dataclass(frozen=True)
class JobAnswer:
    """What Slurm says about a run's job."""

    asked: bool  # whether squeue answered
    queued: QueuedJob | None
    remembered: bool  # whether sacct answered
    last_life: JobLife | None
    life_number: int | None = None  # of the life that `life_start` is of, as JobLife.number
    successor: QueuedJob | None = None
    # RequeueExit: Slurm itself requeues jobs because of their exit code
    site_requeues: bool = False
    stranger: str | None = None  # what now bears the job's number: `NAME in FOLDER`
    other_cluster: str | None = None  # why this Slurm cannot know the job
    canceller: Canceller = Canceller.USER  # where the job's state is CANCELLED
    awaited: bool = False  # whether another job waits for the end of this one
    untold: tuple[UntoldEnd, ...] = ()

    @property
    def live(self) -> bool:
        """Whether the job waits or runs."""
        return self.queued is not None and self.queued.live

    @property
    def live_job(self) -> QueuedJob | None:
        """The run's job, or the one that waits for its end, if it waits or runs."""
        for job in (self.queued, self.successor):
            if job is not None and job.live:
                return job
        return None

    @property
    def pending(self) -> bool:
        """Whether the job waits."""
        return self.queued is not None and self.queued.pending

    @property
    def state(self) -> str | None:
        """The job's state, or that of its last life; None where Slurm knows neither."""
        for job in (self.queued, self.last_life):
            if job is not None:
                return job.state
        return None

    @property
    def life_start(self) -> float | None:
        """When its present or last life began; None where Slurm does not say."""
        if self._life is None:
            return None
        return self._life.start_time

    def life_hours(self, now: float) -> float:
        """How long that life has held its nodes, as far as Slurm says."""
        life = self._life
        if life is None or life.start_time is None:
            return 0.0
        if isinstance(life, JobLife):
            end = life.end_time
        elif life.live:
            end = now
        else:
            end = None
        if end is None:
            return 0.0
        return max(0.0, end - life.start_time) / 3600

    @property
    def life_nodes(self) -> str:
        """The nodes of that life, as Slurm writes them; of a job that ended sacct may know them."""
        for life in (self._life, self.last_life):
            if life is not None and life.node_list:
                return life.node_list
        return ""

    @property
    def _life(self) -> QueuedJob | JobLife | None:
        """The job's present life, or its last one while it is queued or forgotten."""
        if self.queued is not None and not self.queued.pending:
            return self.queued
        return self.last_life
