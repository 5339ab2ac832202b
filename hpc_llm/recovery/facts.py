"""A run's directory and Slurm's answers → what the decision about it rests on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.recovery import watch
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.policy import AGAIN, ELSEWHERE, Budgets, Ended
from hpc_llm.recovery.watch import JobFacts, RunFacts
from hpc_llm.runs import ledger, settings
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.settings import Settings
from hpc_llm.slurm import client
from hpc_llm.slurm.records import JobLife, QueuedJob

SUBMISSIONS = ("submitted", "resubmitted")
WAITING = "waiting"  # frozen, and Slurm has no room for its job yet
_LIFE_S = 14 * 86400.0  # how far back sacct is asked at most
_MOST_IDS = 5000  # on a command line; for more, sacct is asked for all of this user's jobs
# What a supervisor that was asked in vain leaves with: RequeueExit may name any of them.
_EXIT_CODES = frozenset({0, 1, 2, 75, 80})


@dataclass(frozen=True)
class Record:
    """A run as its directory tells it."""

    layout: RunLayout
    config: Settings
    events: list[Event]
    facts: RunFacts


def read(layout: RunLayout) -> Record:
    """OSError, ValueError or KeyError where it is no run, or a damaged one."""
    config = settings.read(layout)
    events, cluster = ledger.read(layout.ledger), config.cluster
    history = attempts_since_submission(events, newest_step(layout.checkpoints), cluster.world_size, cluster.held_gpus)
    return Record(layout, config, events, _facts(layout, config, history, events))


def _facts(layout: RunLayout, config: Settings, history: Sequence[Ended], events: Sequence[Event]) -> RunFacts:
    last = next((event for event in reversed(events) if event.event in (*SUBMISSIONS, WAITING)), None)
    since = last.time if last else 0.0
    # An attempt says itself which job it is in: also where the note of that job's submission was lost.
    newest_job = [event for event in events if event.event in (*SUBMISSIONS, "started") and event.facts.get("job")]
    if last is not None and last.event == WAITING:  # the job that it had before is none of its business any more
        newest_job = [event for event in newest_job if event.time > since]
    newest = max((event.facts["attempt"] for event in events if event.event == "started"), default=0)
    final = [event for event in events if event.time >= since and _is_final(event, newest)]
    successor = next((event for event in reversed(events) if event.event == "successor"), None)
    sent = next((event for event in reversed(events) if event.event == "resubmitting"), None)
    return RunFacts(
        address=str(newest_job[-1].facts["job"]) if newest_job else None,
        submitted_at=since,
        completed=ledger.is_complete(events),
        final=_final_word(final),
        history=history,
        budgets=Budgets.of(config.run, config.recovery),
        heartbeat_at=layout.heartbeat.stat().st_mtime if layout.heartbeat.exists() else None,
        attempt=newest,
        began=_began(events, newest),
        started_at=max((event.time for event in events if event.event == "started"), default=None),
        charged_life=next((event.facts["life"] for event in reversed(events) if event.facts.get("life")), None),
        successor=str(successor.facts["job"]) if successor and successor.time >= since else None,
        sent_at=sent.time if sent and sent.time > since else None,
    )


def _began(events: Sequence[Event], newest_attempt: int) -> bool:
    """Whether an attempt began since the run was last sent on its way; by number where that is told: clocks differ."""
    sent = next((event for event in reversed(events) if event.event in (*SUBMISSIONS, "released", "requeued")), None)
    if sent is None:
        return newest_attempt > 0
    before = sent.facts.get("after_attempt", sent.facts.get("attempt"))
    if before is not None:
        return newest_attempt > int(before)
    begun = [event for event in events if event.event == "started"]
    return any(event.time >= sent.time or event.facts.get("job") == sent.facts.get("job", "") for event in begun)


def _final_word(final: Sequence[Event]) -> str | None:
    """Why it stopped; a run that halving stopped is cancelled because of that."""
    words = [str(event.facts.get("cause", event.event)) for event in final]
    return watch.HALVED if watch.HALVED in words else words[-1] if words else None


def _is_final(event: Event, newest_attempt: int) -> bool:
    """Whether the run ended with it. What an attempt says that another one has followed ends nothing."""
    if event.event in ("cancelled", "given-up", watch.HALVED):
        return True
    if event.event != "ended" or event.facts.get("attempt", newest_attempt) < newest_attempt:
        return False
    if event.facts.get("restart") or event.facts.get("action") in [action.value for action in AGAIN]:
        return False
    return event.facts.get("cause") not in (*ELSEWHERE, Cause.FENCED)


def addresses(record: Record) -> set[str]:
    """Every job that the ledger names as the run's."""
    return {str(event.facts["job"]) for event in record.events if event.facts.get("job")}


class Queue:
    """One squeue for all of this user's jobs."""

    def __init__(self, *, ask: bool = True) -> None:
        self.jobs: list[QueuedJob] = []
        self.asked = False
        with contextlib.suppress(client.SlurmError):
            if ask:
                self.jobs, self.asked = client.queued(), True
        self.by_address = {job.address: job for job in self.jobs}

    def job(self, address: str | None) -> QueuedJob | None:
        """Of an array whose tasks were cancelled one by one while they waited, Slurm keeps the array's record alone."""
        array, _, task = (address or "").partition("_")
        whole = self.by_address.get(array) if task else None
        return self.by_address.get(address or "") or (whole if whole is not None and not whole.live else None)


class Answers:
    """What Slurm says of `records`: from `queue`, and one sacct for the rest."""

    def __init__(self, records: Iterable[Record], queue: Queue) -> None:
        self._queue, self._lives, self._remembered = queue, dict[str, JobLife](), False
        asked = [record.facts for record in records if _for_sacct(record.facts, queue)] if queue.asked else []
        if not asked:
            return
        numbers = {int(run.address.partition("_")[0]) for run in asked if run.address}
        since_s = min(_LIFE_S, time.time() - min(run.submitted_at for run in asked) + 3600)
        with contextlib.suppress(client.SlurmError):
            for life in client.lives(sorted(numbers) if len(numbers) < _MOST_IDS else (), since_s=since_s):
                if life.end_time is not None:  # the last life that ended, of each address
                    self._lives[life.address] = life
            self._remembered = True

    def __call__(self, record: Record) -> JobFacts:
        run, queue = record.facts, self._queue
        queued = queue.job(run.address)
        over = run.completed or run.final is not None
        again = over and queued is not None and queued.state == "PENDING" and bool(run.history)
        return JobFacts(
            asked=queue.asked,
            queued=queued,
            remembered=self._remembered,
            last_life=self._lives.get(run.address or ""),
            successor=queue.job(run.successor),
            site_requeues=again and site_requeues(),
        )


def _for_sacct(run: RunFacts, queue: Queue) -> bool:
    """squeue has forgotten the job, or has it again after a life whose end nobody told."""
    if run.address is None or run.completed or run.final is not None:
        return False
    job = queue.job(run.address)
    untold = bool(run.history) and run.history[-1].cause is Cause.LOST
    return job is None or (job.state == "PENDING" and (untold or watch.glance(job) == "event"))


def site_requeues() -> bool:
    """Whether this Slurm queues a job again by an exit code that a supervisor may leave with (RequeueExit)."""
    try:
        said = client.config().get("RequeueExit", "")
    except client.SlurmError:
        return False
    codes: set[int] = set()
    for part in said.replace("(null)", "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            codes.update(range(int(first), int(last or first) + 1))
    return bool(codes & _EXIT_CODES)
