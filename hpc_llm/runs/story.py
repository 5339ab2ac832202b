"""The ledger of a run, folded once into typed values: its attempts, how each ended, what was done.

Events and keys that this version does not know are passed over. Standard library only.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.entries import (
    Attempt,
    End,
    NodeChange,
    Rung,
    Save,
    Sending,
    SlowRank,
    attempt_of,
    attempt_of_writer,
    end_of,
    node_change_of,
    save_of,
    sending_of,
)
from hpc_llm.runs.ledger import Event

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
_SAVES = (event_names.CHECKPOINTED,)
_NODE_CHANGES = (event_names.EXCLUDED, event_names.READMITTED)
_RUNGS = (event_names.RUNG, event_names.PROMOTED, event_names.HALVED)
Entry = TypeVar("Entry")


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
    completed_steps: int | None  # at which it was complete last; 0: not told; None: it never was
    charged_life: float | None  # start of the job life whose launch failure was charged last

    @property
    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 before the first."""
        return max((attempt.number for attempt in self.attempts), default=0)

    def has_reached(self, steps: int) -> bool:
        """Whether the run is complete at its end, step `steps` of its plan; 0: that is not known.

        The plan of a run may have been made longer since it was complete (runs.extension).
        """
        if self.completed_steps is None:
            return False
        return 0 in (steps, self.completed_steps) or self.completed_steps >= steps

    @property
    def newest_saved_step(self) -> int:
        """The newest step that was saved; 0 for none."""
        return max((save.step for save in self.saves), default=0)

    def first_sending(self, name: str) -> Sending | None:
        """The first one of this name."""
        for sent in self.sendings:
            if sent.name == name:
                return sent
        return None

    def last_sending(self, *names: str) -> Sending | None:
        """The last one of these names."""
        for sent in reversed(self.sendings):
            if sent.name in names:
                return sent
        return None

    def last(self, *names: str) -> Event | None:
        """The last event of these names."""
        for event in reversed(self.events):
            if event.event in names:
                return event
        return None

    def newest_job(self, after: float = -math.inf) -> str | None:
        """The job of the last submission or attempt after this time that names one.

        An attempt tells which job it is in, also where the note of that job's submission was lost.
        """
        for event in reversed(self.events):
            named = event.event in (*SUBMISSIONS, event_names.STARTED) and event.facts.get("job")
            if named and event.time > after:
                return str(event.facts["job"])
        return None

    def was_submitted_as(self, address: str) -> bool:
        """Whether we submitted that job, for the run or for what follows its job."""
        sent = (*SUBMISSIONS, event_names.SUCCESSOR)
        return any(
            event.event in sent and event.facts.get("job") == address for event in self.events
        )

    def is_waiting(self) -> bool:
        """Whether Slurm has no room for the run's job yet."""
        last = self.last(*SUBMISSIONS, event_names.WAITING, event_names.STARTED)
        return last is not None and last.event == event_names.WAITING

    def since_submission(self) -> Story:
        """The part that follows the user's last submission.

        Attempts belong to it by their numbers where it tells them, and by time where it does not:
        clocks differ.
        """
        submitted = self.last_sending(event_names.SUBMITTED)
        if submitted is None:
            return self
        since = submitted.time
        first = self._first_attempt(submitted)

        def belongs(time: float, attempt: int | None) -> bool:
            if first is None or attempt is None:
                return time >= since
            return attempt >= first

        return replace(
            self,
            attempts=tuple(item for item in self.attempts if belongs(item.time, item.number)),
            ends=tuple(end for end in self.ends if belongs(end.time, end.attempt)),
            sendings=tuple(sent for sent in self.sendings if sent.follows(submitted)),
            node_changes=tuple(change for change in self.node_changes if change.time >= since),
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
        number = event.facts.get("attempt") or attempt_of_writer(event.writer)
        if number is not None:
            of_attempt[number].append(event)
        if event.facts.get("job"):
            jobs.append(str(event.facts["job"]))
        charged_life = event.facts.get("life") or charged_life
    attempts = []
    for started in named[event_names.STARTED]:
        attempts.append(attempt_of(started, of_attempt[started.facts["attempt"]]))
    return Story(
        events=tuple(events),
        attempts=tuple(attempts),
        sendings=_all_of(_SENDINGS, events, sending_of),
        ends=_all_of(_ENDS, events, end_of),
        saves=_all_of(_SAVES, events, save_of),
        node_changes=_all_of(_NODE_CHANGES, events, node_change_of),
        rungs=_rungs(events),
        slow_ranks=_slow_ranks(named[event_names.SLOW_RANK]),
        diverged_data_steps=_data_steps(named[event_names.DIVERGED]),
        jobs=tuple(jobs),
        completed_steps=_completed_steps(named.get(event_names.COMPLETED, ())),
        charged_life=charged_life,
    )


def _completed_steps(completed: Sequence[Event]) -> int | None:
    return max((int(event.facts.get("steps") or 0) for event in completed), default=None)


def _all_of(
    names: Collection[str], events: Sequence[Event], make: Callable[[Event], Entry]
) -> tuple[Entry, ...]:
    """What the events of these names tell, in order."""
    return tuple(make(event) for event in events if event.event in names)


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
