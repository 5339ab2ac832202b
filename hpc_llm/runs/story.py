"""The ledger of a run, folded once into typed values: its attempts, how each ended, what was done.

Events and keys that this version does not know are passed over. Standard library only.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.ledger import Event

WATCHDOG = "watchdog-"  # prefix of the writers' names that watchdogs use
SUBMISSIONS = (event_names.SUBMITTED, event_names.RESUBMITTED)
_SENDINGS = (
    *SUBMISSIONS,
    event_names.WAITING,
    event_names.REQUEUED,
    event_names.RELEASED,
    event_names.EXPEDITED,
)
_ENDS = (
    event_names.ENDED,
    event_names.CANCELLED,
    event_names.GIVEN_UP,
    event_names.HALVED,
)
_NODE_CHANGES = (event_names.EXCLUDED, event_names.READMITTED)
_RUNGS = (event_names.RUNG, event_names.PROMOTED, event_names.HALVED)
_ATTEMPTS_WRITER = re.compile(r"(?:supervisor|train)-(\d{4,})")


@dataclass(frozen=True)
class Sending:
    """The run was sent on its way, by its user or again. `name`: submitted, requeued, …"""

    time: float
    name: str
    job: str | None
    after_attempt: int | None  # the newest attempt at that time, where it is told
    attempt: int | None  # the attempt that requeued its own job
    cause: str | None  # of the end that it follows, where nothing else tells it
    nodes: tuple[str, ...]  # that may have failed to start the job
    gpu_hours: float  # of a job in which no attempt began


@dataclass(frozen=True)
class Save:
    """A checkpoint was published. seconds: how long training waited for it."""

    time: float
    step: int
    seconds: float


@dataclass(frozen=True)
class End:
    """An attempt ended, or the run itself (`name` says which). None: the ledger does not tell."""

    time: float
    name: str
    writer: str
    attempt: int | None
    cause: str | None
    checkpoint_step: int | None
    gpu_hours: float | None
    first_failed: int | None  # rank
    node: str | None  # that the evidence points at
    micro_batch: int | None  # of the next attempt, where this one had too little GPU memory
    halved: bool  # whether that is less than before
    restart: bool  # whether the next attempt follows in the same allocation
    action: str | None  # what was decided
    at: float | None  # when Slurm says that it ended, for an end that others noticed later
    why: str


@dataclass(frozen=True)
class Attempt:
    """One attempt, with everything that was written about it. Times in seconds since the epoch."""

    number: int
    time: float  # of its start
    start_step: int | None  # of the newest checkpoint at its start
    job: str | None
    restarts: int | None  # of the job, by Slurm
    host: str | None  # of its supervisor
    pid: int | None
    nodes: tuple[str, ...]
    resumed_at: float | None  # when its ranks were ready to train
    saves: tuple[Save, ...]
    ends: tuple[End, ...]  # several where two writers noticed it
    silent_s: float  # how long its ranks had been silent when they were found to hang
    last_sign: float  # the last thing that is known of it, apart from watchdogs' notes
    seen_s: float  # from the first to the last line that it wrote itself

    @property
    def end(self) -> End | None:
        """As it was told last; None for one that goes on, or was lost with its node."""
        return self.ends[-1] if self.ends else None


@dataclass(frozen=True)
class NodeChange:
    """Nodes were excluded from the run's job, or (`excluded` is False) readmitted."""

    time: float
    writer: str
    excluded: bool
    nodes: tuple[str, ...]
    job: str  # if it is not the run's yet
    why: str


@dataclass(frozen=True)
class Rung:
    """A rung of successive halving. `name`: rung (reached), promoted, or halved."""

    time: float
    name: str
    rung: int
    loss: float  # held-out, of a rung that was reached


@dataclass(frozen=True)
class SlowRank:
    """A rank whose forward pass takes `factor` times as long as the others'."""

    attempt: int
    rank: int
    factor: float


@dataclass(frozen=True)
class Story:
    """What happened to a run, each list in the order of the ledger."""

    events: tuple[Event, ...]
    attempts: tuple[Attempt, ...]
    sendings: tuple[Sending, ...]
    ends: tuple[End, ...]
    saves: tuple[Save, ...]
    node_changes: tuple[NodeChange, ...]
    rungs: tuple[Rung, ...]
    slow_ranks: tuple[SlowRank, ...]
    diverged_data_steps: tuple[int, ...]  # steps of the data's order
    jobs: tuple[str, ...]  # every address that the ledger names as the run's
    completed: bool
    charged_life: float | None  # start of the job life whose launch failure was charged last

    @property
    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 before the first."""
        return max((attempt.number for attempt in self.attempts), default=0)

    @property
    def newest_saved_step(self) -> int:
        """The newest step that was saved; 0 for none."""
        return max((save.step for save in self.saves), default=0)

    def last_sending(self, *names: str) -> Sending | None:
        """The last one of these names."""
        return next((sent for sent in reversed(self.sendings) if sent.name in names), None)

    def last(self, name: str) -> Event | None:
        """The last event of this name."""
        return next((event for event in reversed(self.events) if event.event == name), None)

    def newest_job(self, after: float = -math.inf) -> str | None:
        """The job of the last submission or attempt after this time that names one.

        An attempt tells which job it is in, also where the note of that job's submission was lost.
        """
        for event in reversed(self.events):
            named = event.event in (*SUBMISSIONS, event_names.STARTED) and event.facts.get("job")
            if named and event.time > after:
                return str(event.facts["job"])
        return None

    def is_waiting(self) -> bool:
        """Whether Slurm has no room for the run's job yet."""
        names = (*SUBMISSIONS, event_names.WAITING, event_names.STARTED)
        sent = (event.event for event in reversed(self.events) if event.event in names)
        return next(sent, None) == event_names.WAITING

    def since_submission(self) -> Story:
        """The part that follows the user's last submission.

        Attempts belong to it by their numbers where it tells them, and by time where it does not:
        clocks differ.
        """
        submissions = [sent for sent in self.sendings if sent.name == event_names.SUBMITTED]
        if not submissions:
            return self
        submitted = max(submissions, key=lambda sent: sent.time)
        first = self._first_attempt(submitted)

        def belongs(time: float, number: int | None) -> bool:
            if first is None or number is None:
                return time >= submitted.time
            return number >= first

        return replace(
            self,
            attempts=tuple(item for item in self.attempts if belongs(item.time, item.number)),
            ends=tuple(item for item in self.ends if belongs(item.time, item.attempt)),
            sendings=tuple(item for item in self.sendings if item.time >= submitted.time),
            node_changes=tuple(item for item in self.node_changes if item.time >= submitted.time),
        )

    def _first_attempt(self, submitted: Sending) -> int | None:
        """A submission's first attempt, where it tells its number or an attempt names its job."""
        if submitted.after_attempt is not None:
            return submitted.after_attempt + 1
        if submitted.job is None:
            return None
        own = (attempt.number for attempt in self.attempts if attempt.job == submitted.job)
        return min(own, default=None)


def read_story(folder: Path) -> Story:
    """The story that the ledger in `folder` tells."""
    return fold(ledger.read(folder))


def fold(events: Sequence[Event]) -> Story:
    """Everything that `events` tell.

    KeyError where an attempt lacks its number.
    """
    named = defaultdict[str, list[Event]](list)
    of_attempt = defaultdict[int, list[Event]](list)
    jobs = []
    charged_life = None
    for event in events:
        named[event.event].append(event)
        number = event.facts.get("attempt") or _attempt_of_writer(event.writer)
        if number is not None:
            of_attempt[number].append(event)
        if event.facts.get("job"):
            jobs.append(str(event.facts["job"]))
        charged_life = event.facts.get("life") or charged_life
    started = named[event_names.STARTED]
    return Story(
        events=tuple(events),
        attempts=tuple(_attempt(event, of_attempt[event.facts["attempt"]]) for event in started),
        sendings=tuple(_sending(event) for event in events if event.event in _SENDINGS),
        ends=_ends(events),
        saves=_saves(named[event_names.CHECKPOINTED]),
        node_changes=tuple(_node_change(event) for event in events if event.event in _NODE_CHANGES),
        rungs=_rungs(events),
        slow_ranks=_slow_ranks(named[event_names.SLOW_RANK]),
        diverged_data_steps=_data_steps(named[event_names.DIVERGED]),
        jobs=tuple(jobs),
        completed=event_names.COMPLETED in named,
        charged_life=charged_life,
    )


def _attempt(started: Event, own: Sequence[Event]) -> Attempt:
    """The attempt that began with `started`; own: all events that are about it."""
    facts = started.facts
    number = facts["attempt"]
    resumed = [event.time for event in own if event.event == event_names.RESUMED]
    hangs = [event for event in own if event.event == event_names.HANG]
    signs = [event.time for event in own if not event.writer.startswith(WATCHDOG)]
    written = [event.time for event in own if _attempt_of_writer(event.writer) == number]
    return Attempt(
        number=number,
        time=started.time,
        start_step=facts.get("checkpoint_step"),
        job=_text(facts.get("job")),
        restarts=facts.get("restarts"),
        host=facts.get("host"),
        pid=facts.get("pid"),
        nodes=tuple(facts.get("nodes") or ()),
        resumed_at=min(resumed, default=None),
        saves=_saves([event for event in own if event.event == event_names.CHECKPOINTED]),
        ends=_ends([event for event in own if event.event == event_names.ENDED]),
        silent_s=float(hangs[0].facts.get("silent_s", 0.0)) if hangs else 0.0,
        last_sign=max(signs, default=started.time),
        seen_s=max(written) - min(written) if written else 0.0,
    )


def _attempt_of_writer(writer: str) -> int | None:
    match = _ATTEMPTS_WRITER.fullmatch(writer)
    return int(match[1]) if match else None


def _sending(event: Event) -> Sending:
    facts = event.facts
    after = facts.get("after_attempt")
    return Sending(
        time=event.time,
        name=event.event,
        job=_text(facts.get("job")),
        after_attempt=None if after is None else int(after),
        attempt=facts.get("attempt"),
        cause=facts.get("cause"),
        nodes=tuple(facts.get("nodes") or ()),
        gpu_hours=facts.get("gpu_hours", 0.0),
    )


def _ends(events: Sequence[Event]) -> tuple[End, ...]:
    return tuple(end_of(event) for event in events if event.event in _ENDS)


def end_of(event: Event) -> End:
    """The end that `event` tells."""
    facts = event.facts
    return End(
        time=event.time,
        name=event.event,
        writer=event.writer,
        attempt=facts.get("attempt"),
        cause=facts.get("cause"),
        checkpoint_step=facts.get("checkpoint_step"),
        gpu_hours=facts.get("gpu_hours"),
        first_failed=facts.get("first_failed"),
        node=facts.get("node"),
        micro_batch=facts.get("micro_batch"),
        halved=bool(facts.get("halved", False)),
        restart=bool(facts.get("restart", False)),
        action=facts.get("action"),
        at=facts.get("at"),
        why=str(facts.get("why", "")),
    )


def _saves(events: Sequence[Event]) -> tuple[Save, ...]:
    return tuple(
        Save(event.time, event.facts.get("step", 0), float(event.facts.get("seconds", 0.0)))
        for event in events
    )


def _node_change(event: Event) -> NodeChange:
    return NodeChange(
        time=event.time,
        writer=event.writer,
        excluded=event.event == event_names.EXCLUDED,
        nodes=tuple(event.facts.get("nodes") or ()),
        job=event.facts.get("job", ""),
        why=event.facts.get("why", ""),
    )


def _rungs(events: Sequence[Event]) -> tuple[Rung, ...]:
    rungs = []
    for event in events:
        if event.event in _RUNGS and "rung" in event.facts:
            loss = event.facts.get("heldout_loss", math.nan)
            rungs.append(Rung(event.time, event.event, event.facts["rung"], loss))
    return tuple(rungs)


def _slow_ranks(events: Sequence[Event]) -> tuple[SlowRank, ...]:
    slow = []
    for event in events:
        with contextlib.suppress(KeyError):
            facts = event.facts
            slow.append(SlowRank(facts["attempt"], facts["rank"], facts["factor"]))
    return tuple(slow)


def _data_steps(events: Sequence[Event]) -> tuple[int, ...]:
    return tuple(event.facts["data_step"] for event in events if "data_step" in event.facts)


def _text(value: Any) -> str | None:
    """A job's address, as a string whatever an earlier version wrote."""
    return str(value) if value else None
