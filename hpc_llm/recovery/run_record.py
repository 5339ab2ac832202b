"""One run as its directory tells it: its configuration, its ledger, and what follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.recovery.budgets import Budgets
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.observations import RunSummary
from hpc_llm.recovery.ownership import is_of_run, other_cluster
from hpc_llm.recovery.policy import AGAIN, ELSEWHERE
from hpc_llm.runs import event_names, extension, frozen_sections
from hpc_llm.runs.entries import WATCHDOG, Sending
from hpc_llm.runs.frozen_sections import FrozenSections
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import SharedLedger
from hpc_llm.runs.story import SUBMISSIONS, End, Story, read_story
from hpc_llm.slurm.records import JobLife, QueuedJob

_AGAIN = frozenset(action.value for action in AGAIN)


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it."""

    layout: RunLayout
    config: FrozenSections
    story: Story
    summary: RunSummary

    def is_its_job(self, job: QueuedJob | JobLife, address: str | None) -> bool:
        """Whether `job`, which Slurm has at `address`, is this run's, and not a stranger's."""
        return address is not None and is_of_run(job, address, self.layout, self.story)

    def other_cluster(self) -> str | None:
        """Where its job lives, if not in the cluster that Slurm's commands ask here."""
        return other_cluster(self.story, os.environ)

    def watchdog_ledger(self) -> SharedLedger:
        """The run's ledger, for this process to write as a watchdog."""
        writer = f"{WATCHDOG}{os.uname().nodename}-{os.getpid()}"
        return SharedLedger(self.layout.ledger, writer, self.config.run.group)


def read_record(layout: RunLayout) -> RunRecord:
    """OSError, ValueError or KeyError where it is no run, or a damaged one."""
    config = frozen_sections.read(layout)
    story = read_story(layout.ledger)
    return RunRecord(layout, config, story, _summary(layout, config, story))


def _summary(layout: RunLayout, config: FrozenSections, story: Story) -> RunSummary:
    cluster = config.cluster
    last = story.last_sending(*SUBMISSIONS, event_names.WAITING)
    since = 0.0
    address = story.newest_job()
    if last is not None:
        since = last.time
        if last.name == event_names.WAITING:
            # The job that it had before is none of its business any more.
            address = story.newest_job(after=since)
    newest = max(story.attempts, key=lambda attempt: attempt.number, default=None)
    steps = extension.planned_steps(layout) or 0  # unreadable: looked after all the same
    history = attempts_since_submission(
        story, newest_step(layout.checkpoints), cluster.world_size, cluster.held_gpus
    )
    return RunSummary(
        address=address,
        submitted_at=since,
        completed=story.has_reached(steps),
        final=_final_word(story, last),
        history=history,
        budgets=Budgets.of(config.run, config.recovery, steps),
        heartbeat_at=_heartbeat_at(layout),
        attempt=story.newest_attempt,
        began=_began(story),
        started_at=None if newest is None else newest.time,
        started_in=None if newest is None else newest.job,
        started_life=None if newest is None else newest.restarts,
        charged_life=story.charged_life,
        successor=_successor(story, since, address),
        sent_at=_sent_at(story, since),
        holds_after_admin_cancel=config.recovery.on_admin_cancel == "hold",
    )


def _heartbeat_at(layout: RunLayout) -> float | None:
    if not layout.heartbeat.exists():
        return None
    return layout.heartbeat.stat().st_mtime


def _successor(story: Story, since: float, address: str | None) -> str | None:
    event = story.last(event_names.SUCCESSOR)
    if event is None:
        return None
    if event.time < since and event.facts.get("after") != address:
        return None
    return str(event.facts["job"])


def _sent_at(story: Story, since: float) -> float | None:
    """When a submission was announced after the last one that is known to have arrived."""
    event = story.last(event_names.RESUBMITTING)
    if event is None or event.time <= since:
        return None
    return event.time


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


def _final_word(story: Story, sent: Sending | None) -> str | None:
    """Why it stopped since it was `sent`; what halving stopped is cancelled because of that."""
    newest = story.newest_attempt
    words = []
    for end in story.ends:
        if (sent is None or end.follows(sent)) and _is_final(end, newest):
            words.append(str(end.cause or end.name))
    if event_names.HALVED in words:
        return event_names.HALVED
    return words[-1] if words else None


def _is_final(end: End, newest_attempt: int) -> bool:
    """Whether the run ended with it: an attempt that another one has followed ends nothing."""
    if end.name != event_names.ENDED:
        return True
    if end.attempt is not None and end.attempt < newest_attempt:
        return False
    if end.restart or end.action in _AGAIN:
        return False
    return end.cause not in (*ELSEWHERE, Cause.FENCED)
