"""Where a run's time went: productive, or lost to the queue, start-up, saves, repeated steps.

ETTR as in arXiv 2410.21680 ("Revisiting Reliability in Large-Scale Machine Learning Research
Clusters", section 2.5): productive time ÷ time in which the run was scheduled or waited to be. Time
is productive while training makes progress towards a checkpoint that the run keeps; saves, start-up
and repeated steps are not productive.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from hpc_llm.planning import interval
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import event_names
from hpc_llm.runs.entries import WATCHDOG, Attempt, End
from hpc_llm.runs.story import Story

# Ends that interrupt training; a time limit is expected, and a job that never began interrupts
# nothing.
_INTERRUPTIONS = {
    Cause.CRASH,
    Cause.KILLED,
    Cause.HANG,
    Cause.OUT_OF_MEMORY,
    Cause.NODE_FAILURE,
    Cause.ORPHANED,
    Cause.PREEMPTED,
    Cause.ADMIN_CANCEL,
    Cause.LOST,
    Cause.UNKNOWN,
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
        return float(sum(self._seconds()))

    @property
    def ettr(self) -> float | None:
        """Productive ÷ all time, queueing included; None before there is any."""
        return _ratio(self.productive_s, self.wall_s)

    @property
    def ettr_scheduled(self) -> float | None:
        """Productive ÷ time in which the run held its nodes."""
        return _ratio(self.productive_s, self.wall_s - self.queue_s)

    def _seconds(self) -> tuple[float, ...]:
        return tuple(vars(self).values())

    def __add__(self, other: Account) -> Account:
        pairs = zip(self._seconds(), other._seconds(), strict=True)
        return Account(*(mine + theirs for mine, theirs in pairs))

    def __mul__(self, weight: float) -> Account:
        return Account(*(value * weight for value in self._seconds()))


def _ratio(part_s: float, whole_s: float) -> float | None:
    return part_s / whole_s if whole_s > 0 else None


def account(story: Story, *, until: float | None, first_step_at: float | None = None) -> Account:
    """Where the time of a run went, from its first submission (or attempt) to its end.

    until: the present, for a run that waits or trains; None for one that is over. first_step_at:
    when the run's very first step was done, which is not in the ledger.
    """
    first = story.first_sending(event_names.SUBMITTED)
    began = first.time if first else None
    total = Account()
    before = began
    place = None
    for times in _all_times(story, until, first_step_at):
        if before is not None and times.start > before:
            gap = times.start - before
            if times.place == place:
                total += Account(start_up_s=gap)
            elif began is not None:
                total += Account(queue_s=_waited_s(story, before, times.start))
        total += times.account()
        before = times.end
        place = times.place
    if until is not None and began is not None and before is not None and until > before:
        total += Account(queue_s=until - before)
    return total


def _waited_s(story: Story, since: float, until: float) -> float:
    """How much of this gap between two attempts the run waited to be started.

    All of it, unless its user submitted it again in between: before that nobody waited.
    """
    for sent in reversed(story.sendings):
        if sent.name == event_names.SUBMITTED and since < sent.time <= until:
            return until - sent.time
    return until - since


@dataclass(frozen=True)
class _Times:
    """Of one attempt, in seconds since the epoch: start ≤ training ≤ saved ≤ silent ≤ end."""

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


def _all_times(
    story: Story, until: float | None, first_step_at: float | None = None
) -> list[_Times]:
    attempts = sorted(story.attempts, key=lambda attempt: attempt.number)
    all_times = []
    for position, attempt in enumerate(attempts):
        newest = position + 1 == len(attempts)
        latest = until if newest else attempts[position + 1].time
        first_step = None
        if first_step_at is not None and attempt.time <= first_step_at < (latest or math.inf):
            first_step = first_step_at
        running = newest and until is not None
        all_times.append(_times(attempt, latest, first_step, running=running))
    return all_times


def _times(
    attempt: Attempt, latest: float | None, first_step_at: float | None, *, running: bool
) -> _Times:
    """latest: when the next attempt began, or the present; first_step_at: if it was this one's."""
    start = attempt.time
    last_sign = max(attempt.last_sign, first_step_at or 0.0)
    ended = attempt.first_end
    if ended is not None:
        end = float(ended.at or ended.time)
    elif running and latest is not None:
        end = latest
    else:
        end = last_sign
    if latest is not None:
        end = min(end, latest)
    end = max(start, end)
    no_step_yet = end if running and ended is None and not attempt.saves else start
    training = _within(start, attempt.resumed_at or first_step_at or no_step_yet, end)
    completed = ended is not None and ended.cause == Cause.COMPLETED
    if completed or (running and ended is None):
        kept = end
    else:
        kept = max((save.time for save in attempt.saves), default=training)
    saved = _within(training, kept, end)
    if completed or running or _reported_by_itself(ended):
        last_word = end - attempt.silent_s
    elif attempt.saves and attempt.saves[-1].final:
        last_word = saved  # no step was lost: it waited for its end
    else:
        last_word = last_sign
    return _Times(
        place=_place(attempt),
        start=start,
        training=training,
        saved=saved,
        silent=_within(saved, last_word, end),
        end=end,
        stall_s=sum(save.seconds for save in attempt.saves),
    )


def _reported_by_itself(ended: End | None) -> bool:
    return ended is not None and not ended.writer.startswith(WATCHDOG)


def _place(attempt: Attempt) -> tuple[object, object]:
    """Where it ran: in a life of a job, or in a process on a machine."""
    if attempt.job:
        return attempt.job, attempt.restarts
    return attempt.host, attempt.pid


def _within(low: float, value: float, high: float) -> float:
    return max(low, min(value, high))


def gpu_hours(story: Story, held_gpus: int) -> float:
    """What all attempts have held, as each recorded it, for its machine may have been another one.

    For one that has not, because it goes on or Slurm ended it: from its start to its last sign, on
    `held_gpus`.
    """
    attempts = sorted(story.attempts, key=lambda attempt: attempt.number)
    hours = 0.0
    for attempt, times in zip(attempts, _all_times(story, until=None), strict=True):
        if attempt.end is not None and attempt.end.gpu_hours is not None:
            hours += attempt.end.gpu_hours
        else:
            hours += (times.end - times.start) / 3600 * held_gpus
    return hours


def restarts_by_cause(story: Story) -> dict[str, int]:
    """How the attempts ended that another one followed."""
    causes = _causes_of_restarts(story)
    return {cause: causes.count(cause) for cause in sorted(set(causes))}


def checkpoint_interval_s(
    story: Story, *, num_nodes: int, checkpoint_bytes: int, now: float
) -> float:
    """Daly's interval from this run's own saves and interruptions.

    Estimates replace what is not measured yet.
    """
    saves = [save.seconds for save in story.saves]
    if saves:
        save_s = statistics.median(saves)
    else:
        save_s = interval.expected_save_s(checkpoint_bytes, num_nodes)
    trained_s = sum(times.end - times.training for times in _all_times(story, now))
    causes = _causes_of_restarts(story)
    failures = sum(Cause(cause) in _INTERRUPTIONS for cause in causes)
    return interval.interval_s(max(save_s, 1e-3), interval.mtbf_s(num_nodes, trained_s, failures))


def _causes_of_restarts(story: Story) -> list[str]:
    """By which all attempts but the newest ended, in order."""
    ends = {attempt.number: attempt.end for attempt in story.attempts}
    causes = []
    for number in sorted(ends)[:-1]:
        end = ends[number]
        if end is None or end.cause is None:
            causes.append(str(Cause.LOST))
        else:
            causes.append(end.cause)
    return causes
