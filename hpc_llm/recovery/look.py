"""A run's directory and Slurm's answers → what the decision about it rests on."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.recovery import outside
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.outside import JobFacts, RunFacts
from hpc_llm.recovery.policy import AGAIN, ELSEWHERE, Budgets, Decision
from hpc_llm.runs import below, event_names, frozen_sections, ledger
from hpc_llm.runs.frozen_sections import FrozenSections
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import SharedLedger
from hpc_llm.runs.story import SUBMISSIONS, WATCHDOG, End, Story, read_story
from hpc_llm.slurm import client, site
from hpc_llm.slurm.records import JobLife, QueuedJob

_LIFE_S = 14 * 86400.0  # how far back sacct is asked at most
_MOST_IDS = 5000  # on a command line; for more, sacct is asked for all of this user's jobs
# What a supervisor that was asked in vain leaves with: RequeueExit may name any of them.
_EXIT_CODES = frozenset({0, 1, 2, 75, 80})


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it."""

    layout: RunLayout
    config: FrozenSections
    story: Story
    facts: RunFacts


def read_record(layout: RunLayout) -> RunRecord:
    """OSError, ValueError or KeyError where it is no run, or a damaged one."""
    config = frozen_sections.read(layout)
    story = read_story(layout.ledger)
    return RunRecord(layout, config, story, _run_facts(layout, config, story))


def _run_facts(layout: RunLayout, config: FrozenSections, story: Story) -> RunFacts:
    cluster = config.cluster
    last = story.last_sending(*SUBMISSIONS, event_names.WAITING)
    since = last.time if last else 0.0
    waiting = last is not None and last.name == event_names.WAITING
    heartbeat = layout.heartbeat
    successor = story.last(event_names.SUCCESSOR)
    resubmitting = story.last(event_names.RESUBMITTING)
    return RunFacts(
        # While it waits for room, the job that it had before is none of its business any more.
        address=story.newest_job(after=since) if waiting else story.newest_job(),
        submitted_at=since,
        completed=story.completed,
        final=_final_word(story, since),
        history=attempts_since_submission(
            story, newest_step(layout.checkpoints), cluster.world_size, cluster.held_gpus
        ),
        budgets=Budgets.of(config.run, config.recovery),
        heartbeat_at=heartbeat.stat().st_mtime if heartbeat.exists() else None,
        attempt=story.newest_attempt,
        began=_began(story),
        started_at=max((attempt.time for attempt in story.attempts), default=None),
        charged_life=story.charged_life,
        successor=str(successor.facts["job"]) if successor and successor.time >= since else None,
        sent_at=resubmitting.time if resubmitting and resubmitting.time > since else None,
    )


def _began(story: Story) -> bool:
    """Whether an attempt began since the run was last sent on its way.

    By the attempts' numbers where they are told: clocks differ.
    """
    sent = story.last_sending(*SUBMISSIONS, event_names.RELEASED, event_names.REQUEUED)
    if sent is None:
        return story.newest_attempt > 0
    before = sent.attempt if sent.after_attempt is None else sent.after_attempt
    if before is not None:
        return story.newest_attempt > int(before)
    for attempt in story.attempts:
        if attempt.time >= sent.time or (sent.job is not None and attempt.job == sent.job):
            return True
    return False


def _final_word(story: Story, since: float) -> str | None:
    """Why it stopped; a run that halving stopped is cancelled because of that."""
    words = []
    for end in story.ends:
        if end.time >= since and _is_final(end, story.newest_attempt):
            words.append(str(end.cause or end.name))
    if event_names.HALVED in words:
        return event_names.HALVED
    return words[-1] if words else None


def _is_final(end: End, newest_attempt: int) -> bool:
    """Whether the run ended with it.

    What an attempt says that another one has followed ends nothing.
    """
    if end.name != event_names.ENDED:
        return True
    if end.attempt is not None and end.attempt < newest_attempt:
        return False
    if end.restart or end.action in [action.value for action in AGAIN]:
        return False
    return end.cause not in (*ELSEWHERE, Cause.FENCED)


class SlurmQueue:
    """One squeue for all of this user's jobs."""

    def __init__(self, *, ask: bool = True) -> None:
        self.jobs: list[QueuedJob] = []
        self.asked = False
        with contextlib.suppress(client.SlurmError):
            if ask:
                self.jobs = client.queued()
                self.asked = True
        self.by_address = {job.address: job for job in self.jobs}

    def job(self, address: str | None) -> QueuedJob | None:
        """Of an array whose tasks were cancelled one by one while they waited, Slurm keeps the
        array's record alone.
        """
        array, _, task = (address or "").partition("_")
        whole = self.by_address.get(array) if task else None
        return self.by_address.get(address or "") or (
            whole if whole is not None and not whole.live else None
        )


class SlurmAnswers:
    """What Slurm says of `records`: from `queue`, and one sacct for the rest."""

    def __init__(self, records: Iterable[RunRecord], queue: SlurmQueue) -> None:
        self._queue = queue
        self._lives = dict[str, JobLife]()
        self._remembered = False
        asked = (
            [record.facts for record in records if _for_sacct(record.facts, queue)]
            if queue.asked
            else []
        )
        if not asked:
            return
        numbers = {int(run.address.partition("_")[0]) for run in asked if run.address}
        since_s = min(_LIFE_S, time.time() - min(run.submitted_at for run in asked) + 3600)
        with contextlib.suppress(client.SlurmError):
            for life in client.lives(
                sorted(numbers) if len(numbers) < _MOST_IDS else (), since_s=since_s
            ):
                if life.end_time is not None:  # the last life that ended, of each address
                    self._lives[life.address] = life
            self._remembered = True

    def __call__(self, record: RunRecord) -> JobFacts:
        run = record.facts
        queue = self._queue
        queued = queue.job(run.address)
        over = run.completed or run.final is not None
        again = over and queued is not None and queued.pending and bool(run.history)
        return JobFacts(
            asked=queue.asked,
            queued=queued,
            remembered=self._remembered,
            last_life=self._lives.get(run.address or ""),
            successor=queue.job(run.successor),
            site_requeues=again and site_requeues(),
        )


def _for_sacct(run: RunFacts, queue: SlurmQueue) -> bool:
    """squeue has forgotten the job, or has it again after a life whose end nobody told."""
    if run.address is None or run.completed or run.final is not None:
        return False
    job = queue.job(run.address)
    untold = bool(run.history) and run.history[-1].cause is Cause.LOST
    return job is None or (job.pending and (untold or outside.glance(job) == "event"))


def site_requeues() -> bool:
    """Whether this Slurm requeues a job by an exit code that a supervisor may leave with."""
    try:
        return not _EXIT_CODES.isdisjoint(site.requeued_exit_codes())
    except client.SlurmError:
        return False


@dataclass(frozen=True)
class Seen:
    """A run and what is to be done about it."""

    record: RunRecord
    job: JobFacts
    decision: Decision


def ledger_for(record: RunRecord) -> ledger.Ledger:
    """Of the run, for this watchdog to write."""
    writer = f"{WATCHDOG}{os.uname().nodename}-{os.getpid()}"
    return SharedLedger(record.layout.ledger, writer, record.config.run.group)


def look_at_all(root: Path) -> list[Seen]:
    """Every run at or below `root` and what should be done about it; nothing is written."""
    return decide_all(read_all(root), SlurmQueue(), time.time(), {})


def read_all(root: Path) -> list[RunRecord]:
    """Every run at or below `root` that can be read; Slurm is not asked."""
    paths = [str(run.path.relative_to(root)) for run in below.find_runs(root)]
    return [record for _, record in readable(root, paths)]


def readable(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, RunRecord]]:
    """Runs with their facts; one that cannot be read does not keep the others from being looked
    after.
    """
    for path in paths:
        layout = RunLayout(root / path)
        try:
            yield path, read_record(layout)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{layout.path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def decide_all(
    records: Iterable[RunRecord],
    queue: SlurmQueue,
    now: float,
    silences: Mapping[Path, outside.Silence],
) -> list[Seen]:
    """silences: what the last pass saw, by run directory."""
    records = list(records)
    found = []
    answers = SlurmAnswers(records, queue)
    for record in records:
        job = answers(record)
        silence = silences.get(record.layout.path, outside.NO_SILENCE)
        found.append(Seen(record, job, outside.decide_outside(record.facts, job, now, silence)))
    return found
