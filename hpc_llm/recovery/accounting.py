"""Where a run's time went, from its ledger: productive, or lost to queue, start-up, saves, repeated
steps, detection.

ETTR as in arXiv 2410.21680 ("Revisiting Reliability in Large-Scale Machine Learning Research
Clusters", section 2.5): productive time ÷ time in which the run was scheduled or waited to be. Time
is productive while training makes progress towards a checkpoint that the run keeps; saves, start-up
and repeated steps are not productive.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from hpc_llm.planning import interval
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.ledger import Event

# Ends that interrupt training; a time limit is expected, and a job that never began interrupts
# nothing.
_INTERRUPTIONS = {
    *(
        Cause.CRASH,
        Cause.KILLED,
        Cause.HANG,
        Cause.OUT_OF_MEMORY,
        Cause.NODE_FAILURE,
        Cause.ORPHANED,
    ),
    *(Cause.PREEMPTED, Cause.LOST, Cause.UNKNOWN),
}


@dataclass(frozen=True)
class Account:
    """Seconds; they sum up to `wall_s`."""

    productive_s: float = 0.0
    queue_s: float = 0.0
    start_up_s: float = 0.0
    stall_s: float = 0.0  # saves
    lost_s: float = 0.0  # steps after the last checkpoint of an attempt, and its shutdown
    detection_s: float = 0.0  # from the last sign of an attempt until its end was noticed

    @property
    def wall_s(self) -> float:
        return float(sum(astuple(self)))

    @property
    def ettr(self) -> float | None:
        """Productive ÷ all time, queueing included; None before there is any."""
        return self.productive_s / self.wall_s if self.wall_s > 0 else None

    @property
    def ettr_scheduled(self) -> float | None:
        """Productive ÷ time in which the run held its nodes."""
        held_s = self.wall_s - self.queue_s
        return self.productive_s / held_s if held_s > 0 else None

    def __add__(self, other: Account) -> Account:
        return Account(
            *(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def __mul__(self, weight: float) -> Account:
        return Account(*(value * weight for value in astuple(self)))


def account(
    events: Sequence[Event], *, until: float | None, first_step_at: float | None = None
) -> Account:
    """Where the time of a run went, from its first submission (or attempt, if it was not submitted)
    to its end.

    until: the present, for a run that waits or trains; None for one that is over. first_step_at:
    when the run's very first step was done, which is not in the ledger.
    """
    attempts = _attempts(events, until, first_step_at)
    began = min((event.time for event in events if event.event == "submitted"), default=None)
    total = Account()
    before = began
    place = None
    for attempt in attempts:
        if before is not None and attempt.start > before:
            gap = attempt.start - before
            if attempt.place == place:
                total += Account(start_up_s=gap)
            elif began is not None:
                total += Account(queue_s=gap)
        total += attempt.account()
        before = attempt.end
        place = attempt.place
    if until is not None and began is not None and before is not None and until > before:
        total += Account(queue_s=until - before)
    return total


@dataclass(frozen=True)
class _Attempt:
    """Times in seconds since the epoch, start ≤ training ≤ saved ≤ silent ≤ end."""

    place: Any  # the same for attempts in one allocation
    start: float
    training: float  # the first step begins
    saved: float  # work up to here is kept
    silent: float  # the last sign of it
    end: float
    stall_s: float

    def account(self) -> Account:
        stall_s = min(self.stall_s, self.saved - self.training)
        return Account(
            productive_s=self.saved - self.training - stall_s,
            start_up_s=self.training - self.start,
            stall_s=stall_s,
            lost_s=self.silent - self.saved,
            detection_s=self.end - self.silent,
        )


def _attempts(
    events: Sequence[Event], until: float | None, first_step_at: float | None = None
) -> list[_Attempt]:
    started = sorted(
        (event for event in events if event.event == "started"), key=lambda event: event.time
    )
    own: dict[int, list[Event]] = {}
    for event in events:
        number = event.facts.get("attempt") or _number(event.writer)
        if number is not None:
            own.setdefault(number, []).append(event)
    found = []
    for position, event in enumerate(started):
        newest = position + 1 == len(started)
        latest = until if newest else started[position + 1].time
        mine = own[event.facts["attempt"]]
        if first_step_at is not None and event.time <= first_step_at < (
            latest or first_step_at + 1
        ):
            mine = [Event(first_step_at, "training", "", {}), *mine]
        found.append(_attempt(event, mine, latest, running=newest and until is not None))
    return found


def _attempt(
    started: Event, own: Sequence[Event], latest: float | None, *, running: bool
) -> _Attempt:
    start = started.time
    by_itself = [event.time for event in own if not event.writer.startswith("watchdog")]
    ended = next((event for event in own if event.event == "ended"), None)
    if ended is not None:
        end = float(ended.facts.get("at") or ended.time)
    elif running and latest is not None:
        end = latest
    else:
        end = max(by_itself, default=start)
    end = max(start, end if latest is None else min(end, latest))
    training = _within(start, _first(own, ("resumed", "training")) or start, end)
    saves = [event for event in own if event.event == "checkpointed"]
    good = ended is not None and ended.facts.get("cause") == Cause.COMPLETED
    kept = (
        end
        if good or (running and ended is None)
        else max((event.time for event in saves), default=training)
    )
    saved = _within(training, kept, end)
    silent_s = next(
        (float(event.facts.get("silent_s", 0.0)) for event in own if event.event == "hang"), 0.0
    )
    told = ended is not None and not ended.writer.startswith("watchdog")
    last_word = end - silent_s if told or running or good else max(by_itself, default=start)
    silent = _within(saved, last_word, end)
    stall_s = sum(float(event.facts.get("seconds", 0.0)) for event in saves)
    facts = started.facts
    place = (
        (facts.get("job"), facts.get("restarts"))
        if facts.get("job")
        else (facts.get("host"), facts.get("pid"))
    )
    return _Attempt(place, start, training, saved, silent, end, stall_s)


def _first(events: Iterable[Event], names: tuple[str, ...]) -> float | None:
    """The earliest of the first-named kind that there is."""
    kinds: Mapping[str, list[float]] = {
        name: [e.time for e in events if e.event == name] for name in names
    }
    return next((min(times) for times in kinds.values() if times), None)


def _within(low: float, value: float, high: float) -> float:
    return max(low, min(value, high))


def _number(writer: str) -> int | None:
    role, _, number = writer.rpartition("-")
    return int(number) if role in ("supervisor", "train") and number.isdecimal() else None


def gpu_hours(events: Sequence[Event], held_gpus: int) -> float:
    """What all attempts have held, as each recorded it, for its machine may have been another one.

    For one that has not, because it goes on or Slurm ended it: from its start to its last sign, on
    `held_gpus`.
    """
    started = sorted(
        (event for event in events if event.event == "started"), key=lambda event: event.time
    )
    recorded = {
        event.facts.get("attempt"): event.facts.get("gpu_hours")
        for event in events
        if event.event == "ended"
    }
    hours = 0.0
    for event, attempt in zip(started, _attempts(events, until=None), strict=True):
        found = recorded.get(event.facts["attempt"])
        hours += (attempt.end - attempt.start) / 3600 * held_gpus if found is None else found
    return hours


def restarts_by_cause(events: Sequence[Event]) -> dict[str, int]:
    """How the attempts ended that another one followed."""
    started = {event.facts["attempt"] for event in events if event.event == "started"}
    ended = {
        event.facts.get("attempt"): event.facts.get("cause")
        for event in events
        if event.event == "ended"
    }
    causes = [str(ended.get(number, Cause.LOST)) for number in sorted(started)[:-1]]
    return {cause: causes.count(cause) for cause in sorted(set(causes))}


def checkpoint_interval_s(
    events: Sequence[Event], *, num_nodes: int, checkpoint_bytes: int, now: float
) -> float:
    """Daly's interval from this run's own saves and interruptions; estimates replace what is not
    measured yet.
    """
    saves = [float(event.facts["seconds"]) for event in events if event.event == "checkpointed"]
    save_s = (
        statistics.median(saves) if saves else interval.expected_save_s(checkpoint_bytes, num_nodes)
    )
    attempts = _attempts(events, now)
    trained_s = sum(attempt.end - attempt.training for attempt in attempts)
    ended = {
        event.facts.get("attempt"): event.facts.get("cause")
        for event in events
        if event.event == "ended"
    }
    started = sorted(event.facts["attempt"] for event in events if event.event == "started")
    causes = [Cause(ended.get(number, Cause.LOST)) for number in started[:-1]]
    failures = sum(cause in _INTERRUPTIONS for cause in causes)
    return interval.interval_s(max(save_s, 1e-3), interval.mtbf_s(num_nodes, trained_s, failures))
