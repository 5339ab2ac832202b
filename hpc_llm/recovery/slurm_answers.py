"""What Slurm says about the jobs of many runs: one squeue, and one sacct for those it forgot."""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hpc_llm.recovery import outside
from hpc_llm.recovery.observations import Canceller, JobAnswer, RunSummary, UntoldEnd
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.runs.entries import Attempt
from hpc_llm.slurm import client, site
from hpc_llm.slurm.records import JobLife, QueuedJob

_MOST_S = 14 * 86400.0  # how far back sacct is asked at most
_MOST_IDS = 5000  # on a command line; for more, sacct is asked for all of this user's jobs
_MOST_CLOCK_SKEW_S = 600.0  # between the machine that submitted and the controller
# What a supervisor that has nothing to do leaves with: RequeueExit may name any of them.
_EXIT_CODES = frozenset({0, 1, 2, 75, 80})


class SlurmQueue:
    """One squeue for all of this user's jobs. `asked`: whether Slurm has answered."""

    def __init__(self, *, ask: bool = True) -> None:
        self.jobs: list[QueuedJob] = []
        self.asked = False
        with contextlib.suppress(client.SlurmError):
            if ask:
                self.jobs = client.queued()
                self.asked = True
        self.by_address = {job.address: job for job in self.jobs}

    def job(self, address: str | None) -> QueuedJob | None:
        """The job at `address`, `12` or `12_3`.

        Of an array whose tasks were cancelled one by one while they waited, Slurm keeps the array's
        record alone.
        """
        if address in self.by_address:
            return self.by_address[address]
        array, _, task = (address or "").partition("_")
        whole = self.by_address.get(array) if task else None
        return whole if whole is not None and not whole.live else None

    def job_of(self, record: RunRecord, address: str | None) -> QueuedJob | None:
        """The job at `address` if it is this run's."""
        job = self.job(address)
        if job is None or not record.is_its_job(job, address):
            return None
        return job

    def stranger_at(self, record: RunRecord, address: str | None) -> str | None:
        """What bears the number of the run's job without being it."""
        job = self.job(address)
        if job is None or record.is_its_job(job, address):
            return None
        return f"{job.name} in {job.work_dir}"


class SlurmAnswers:
    """What Slurm says of `records`: from `queue`, and one sacct for the rest."""

    def __init__(self, records: Iterable[RunRecord], queue: SlurmQueue) -> None:
        self._queue = queue
        self._lives = defaultdict[str, list[JobLife]](list)
        self._unended = set[str]()  # jobs that accounting knows, and thinks alive
        self._remembered = False
        self._keeps_accounts = True
        if not queue.asked:
            return
        runs = [record.summary for record in records if _sacct_may_know_more(record, queue)]
        if runs:
            self._ask_sacct(runs)

    def of(self, record: RunRecord) -> JobAnswer:
        """What Slurm says of one of them."""
        run = record.summary
        other_cluster = record.other_cluster()
        if other_cluster is not None:
            return JobAnswer(False, None, False, None, other_cluster=other_cluster)
        queued = self._queue.job_of(record, run.address)
        lives = self._lives_of(record)
        last_life = _last_life(queued, lives)
        life_number = None if last_life is None else last_life.number
        if queued is not None and queued.running and self._remembered:
            life_number = len(lives)
        waits_after_its_end = run.over and queued is not None and queued.pending
        requeued_after_its_end = waits_after_its_end and bool(run.history)
        return JobAnswer(
            asked=self._queue.asked,
            queued=queued,
            remembered=self._remembered,
            last_life=last_life,
            life_number=life_number,
            successor=self._queue.job_of(record, run.successor),
            site_requeues=requeued_after_its_end and not run.completed and site_requeues(),
            stranger=self._queue.stranger_at(record, run.address),
            canceller=self._canceller(run.address, lives[-1] if lives else None),
            awaited=requeued_after_its_end and run.completed and _is_awaited(run.address),
            untold=tuple(_untold(record, lives)) if self._remembered else (),
        )

    def _lives_of(self, record: RunRecord) -> list[JobLife]:
        """The lives that ended of the run's job: after its submission, and in its folder."""
        address = record.summary.address
        earliest = record.summary.submitted_at - _MOST_CLOCK_SKEW_S
        lives = list[JobLife]()
        for life in self._lives.get(address or "", []):
            ended_after = life.end_time is not None and life.end_time >= earliest
            if ended_after and record.is_its_job(life, address):
                lives.append(replace(life, number=len(lives)))
        return lives

    def _canceller(self, address: str | None, last_life: JobLife | None) -> Canceller:
        """Who cancelled the job at `address`, if somebody did."""
        if last_life is not None and last_life.state == "CANCELLED":
            if last_life.cancelled_by is None:
                return Canceller.NOT_TOLD
            return Canceller.USER if _is_own(last_life.cancelled_by) else Canceller.OTHER
        if not self._keeps_accounts:
            return Canceller.NOT_TOLD
        if self._remembered and address not in self._unended:
            return Canceller.NOT_TOLD
        return Canceller.NOT_YET

    def _ask_sacct(self, runs: list[RunSummary]) -> None:
        numbers = {int(run.address.partition("_")[0]) for run in runs if run.address}
        ids = sorted(numbers) if len(numbers) < _MOST_IDS else []
        first_submitted_at = min(run.submitted_at for run in runs)
        since_s = min(_MOST_S, time.time() - first_submitted_at + 3600)
        try:
            lives = client.lives(ids, since_s=since_s)
        except client.SlurmRefused:  # accounting is disabled, or not for us: nobody will tell
            self._keeps_accounts = False
            return
        except client.SlurmUnavailable:
            return
        self._remembered = True
        for life in lives:
            if life.end_time is None:
                self._unended.add(life.address)
            else:
                self._lives[life.address].append(life)


def _last_life(queued: QueuedJob | None, lives: Sequence[JobLife]) -> JobLife | None:
    """The job's last life that ended: of a job that squeue shows as ended, just that one."""
    for life in reversed(lives):
        if queued is None or queued.pending or life.start_time == queued.start_time:
            return life
    return None


def site_requeues() -> bool:
    """Whether this Slurm requeues a job by an exit code that a supervisor may leave with."""
    try:
        return not _EXIT_CODES.isdisjoint(site.requeued_exit_codes())
    except client.SlurmError:
        return False


def _sacct_may_know_more(record: RunRecord, queue: SlurmQueue) -> bool:
    """squeue has forgotten the job, or it had lives of which the ledger may not know the end."""
    run = record.summary
    if run.address is None or run.over or record.other_cluster() is not None:
        return False
    job = queue.job_of(record, run.address)
    if job is None or _untold_attempts(record):
        return True
    if not job.live:
        return bool(run.history) or job.state == "CANCELLED"
    if job.running:
        last_sign = max(run.heartbeat_at or 0.0, job.start_time or time.time())
        return time.time() - last_sign > outside.ORPHAN_AFTER_S
    return job.pending and (run.lost or outside.glance(job) == "event")


def _untold_attempts(record: RunRecord) -> list[Attempt]:
    """Attempts of earlier lives of the run's job that did not record their end.

    Slurm had started the job again before anybody asked how they ended.
    """
    story = record.story
    untold = []
    for attempt in story.attempts:
        followed = attempt.number < story.newest_attempt
        own = attempt.job == record.summary.address and attempt.restarts is not None
        if followed and own and attempt.end is None:
            untold.append(attempt)
    return untold


def _untold(record: RunRecord, lives: list[JobLife]) -> Iterator[UntoldEnd]:
    """How these ended, as far as accounting knows: a life for each restart, in order."""
    for attempt in _untold_attempts(record):
        number = attempt.restarts
        life = None
        if number is not None and number < len(lives):
            life = lives[number]
        yield UntoldEnd(attempt.number, life)


def _is_own(who: int | str) -> bool:
    """Whether this user is meant, by number or by name."""
    if isinstance(who, int):
        return who == os.getuid()
    try:
        return who == pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # this machine does not know its user's name
        return who == os.environ.get("USER")


def _is_awaited(address: str | None) -> bool:
    """Whether a job waits for the end of this one; also where Slurm does not answer."""
    try:
        return address is not None and client.is_awaited(address)
    except client.SlurmError:
        return True
