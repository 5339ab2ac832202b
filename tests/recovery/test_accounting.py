"""Where a run's time went: every second of it is in one place."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.planning import interval
from hpc_llm.recovery.accounting import Account, account, checkpoint_interval_s, restarts_by_cause
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.story import fold


def event(time: float, name: str, writer: str = "", **facts: Any) -> Event:
    return Event(time, name, writer or f"supervisor-{facts.get('attempt', 1):04d}", facts)


def submitted(time: float) -> Event:
    return event(time, "submitted", "submit", job="12")


def started(time: float, attempt: int, restarts: int = 0) -> Event:
    return event(time, "started", attempt=attempt, checkpoint_step=0, job="12", restarts=restarts)


def saved(time: float, attempt: int, seconds: float = 0.0) -> Event:
    return event(
        time,
        "checkpointed",
        f"train-{attempt:04d}",
        attempt=attempt,
        step=int(time),
        seconds=seconds,
    )


def ended(time: float, attempt: int, cause: str) -> Event:
    return event(time, "ended", attempt=attempt, cause=cause)


def test_an_undisturbed_run_is_productive_but_for_queue_start_up_and_saves() -> None:
    events = [submitted(0), started(100, 1), event(130, "resumed", "train-0001", attempt=1)]
    events += [saved(500, 1, 4.0), saved(900, 1, 6.0), ended(1000, 1, "completed")]
    found = account(fold(events), until=None)
    assert found == Account(productive_s=860.0, queue_s=100.0, start_up_s=30.0, stall_s=10.0)
    assert found.ettr == pytest.approx(0.86)
    assert found.ettr_scheduled == pytest.approx(860 / 900)


def test_a_crash_loses_what_came_after_the_last_save_and_starts_up_in_place() -> None:
    events = [submitted(0), started(0, 1), saved(400, 1), ended(500, 1, "crash")]
    events += [
        started(510, 2),
        event(525, "resumed", "train-0002", attempt=2, step=4),
        ended(1000, 2, "completed"),
    ]
    assert account(fold(events), until=None) == Account(
        productive_s=400 + 475, start_up_s=10 + 15, lost_s=100.0
    )
    assert restarts_by_cause(fold(events)) == {"crash": 1}


def test_a_preempted_run_waits_in_the_queue() -> None:
    events = [
        submitted(0),
        started(0, 1),
        saved(400, 1),
        event(450, "ended", "watchdog-a-1", attempt=1, cause="preempted"),
    ]
    events += [started(600, 2, restarts=1), ended(1000, 2, "completed")]
    found = account(fold(events), until=None)
    assert (found.queue_s, found.productive_s, found.detection_s) == (150.0, 800.0, 50.0)


def test_a_hang_is_time_until_somebody_noticed() -> None:
    events = [
        submitted(0),
        started(0, 1),
        saved(400, 1),
        event(700, "hang", attempt=1, silent_s=250.0),
    ]
    events += [ended(700, 1, "hang"), started(700, 2), ended(1000, 2, "completed")]
    found = account(fold(events), until=None)
    assert (found.lost_s, found.detection_s) == (50.0, 250.0)


def test_a_node_that_died_is_detected_when_slurm_says_so() -> None:
    events = [submitted(0), started(0, 1), saved(400, 1), event(430, "notice", attempt=1)]
    events += [event(900, "ended", "watchdog-a-1", attempt=1, cause="node-failure", at=460.0)]
    events += [started(1000, 2, restarts=1), ended(1500, 2, "completed")]
    found = account(fold(events), until=None)
    assert (found.lost_s, found.detection_s, found.queue_s) == (30.0, 30.0, 540.0)


def test_what_was_saved_before_a_preemption_is_not_lost_while_its_end_is_awaited() -> None:
    events = [submitted(0), started(0, 1)]
    events += [event(400, "checkpointed", attempt=1, step=9, final=True)]
    events += [event(433, "notice", attempt=1)]
    events += [event(460, "ended", "watchdog-a-1", attempt=1, cause="preempted", at=433.0)]
    events += [started(500, 2, restarts=1), ended(900, 2, "completed")]
    found = account(fold(events), until=None)
    assert (found.lost_s, found.detection_s) == (0.0, 33.0)


def test_nobody_waits_between_a_stop_and_the_next_submission() -> None:
    events = [submitted(0), started(10, 1), saved(100, 1), ended(100, 1, "stopped")]
    events += [submitted(5000), started(5020, 2, restarts=1), ended(5100, 2, "completed")]
    found = account(fold(events), until=None)
    assert (found.queue_s, found.wall_s) == (30.0, 200.0)


def test_a_run_that_trains_is_taken_for_productive_until_it_loses_something() -> None:
    events = [submitted(0), started(100, 1)]
    begun = account(fold(events), until=400, first_step_at=100.5)
    assert begun == Account(productive_s=299.5, queue_s=100.0, start_up_s=0.5)
    assert account(fold(events), until=400) == Account(queue_s=100.0, start_up_s=300.0)
    assert account(fold([submitted(0)]), until=50) == Account(queue_s=50.0)
    assert account(fold([]), until=50).ettr is None


def test_the_time_before_the_first_step_is_start_up() -> None:
    events = [submitted(0), started(100, 1), saved(500, 1), ended(600, 1, "completed")]
    assert account(fold(events), until=None, first_step_at=160.0).start_up_s == 60.0
    assert account(fold(events), until=None).start_up_s == 0.0


def test_a_run_here_does_not_wait_while_nobody_runs_it() -> None:
    def here(time: float, attempt: int, pid: int) -> Event:
        return event(time, "started", attempt=attempt, checkpoint_step=0, host="me", pid=pid)

    events = [
        here(0, 1, 7),
        saved(90, 1),
        ended(100, 1, "stopped"),
        here(5000, 2, 8),
        ended(5100, 2, "completed"),
    ]
    assert account(fold(events), until=None) == Account(productive_s=190.0, lost_s=10.0)


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """Attempts in order with whatever events inside, told or not."""
    now = draw(st.floats(0, 1e4))
    events = [submitted(now)]
    for attempt in range(1, draw(st.integers(1, 6)) + 1):
        now += draw(st.floats(0, 500))
        events.append(started(now, attempt, draw(st.integers(0, 2))))
        for _ in range(draw(st.integers(0, 4))):
            now += draw(st.floats(0, 500))
            kind = draw(st.sampled_from(["saved", "resumed", "hang"]))
            if kind == "saved":
                events.append(saved(now, attempt, draw(st.floats(0, 700))))
            else:
                events.append(
                    event(
                        now,
                        kind,
                        f"train-{attempt:04d}",
                        attempt=attempt,
                        silent_s=draw(st.floats(0, 900)),
                    )
                )
        if draw(st.booleans()):
            now += draw(st.floats(0, 500))
            cause = draw(st.sampled_from(["crash", "completed", "preempted", "hang"]))
            writer = draw(st.sampled_from(["", "watchdog-a-1"]))
            events.append(event(now, "ended", writer, attempt=attempt, cause=cause))
    return events


@settings(deadline=None, max_examples=200)
@given(stories(), st.floats(0, 1000))
def test_every_second_is_in_one_place(events: list[Event], more: float) -> None:
    until = max(one.time for one in events) + more
    found = account(fold(events), until=until)
    assert all(value >= -1e-6 for value in astuple(found))
    assert found.wall_s == pytest.approx(until - events[0].time, abs=1e-3)
    assert found.ettr is None or -1e-9 <= found.ettr <= 1 + 1e-9


def test_the_interval_follows_what_this_run_has_seen() -> None:
    size = 10**9
    calm = [submitted(0), started(0, 1), saved(1000, 1, 5.0)]
    quiet = checkpoint_interval_s(fold(calm), num_nodes=8, checkpoint_bytes=size, now=2000)
    assert quiet == pytest.approx(interval.interval_s(5.0, interval.mtbf_s(8, 2000.0)), rel=1e-6)
    stormy = [
        *calm,
        ended(1100, 1, "crash"),
        started(1100, 2),
        ended(1200, 2, "killed"),
        started(1200, 3),
    ]
    assert checkpoint_interval_s(fold(stormy), num_nodes=8, checkpoint_bytes=size, now=2000) < quiet
    dear = [*calm, saved(1500, 1, 50.0), saved(1600, 1, 50.0)]
    assert checkpoint_interval_s(fold(dear), num_nodes=8, checkpoint_bytes=size, now=2000) > quiet
    unmeasured = checkpoint_interval_s(
        fold([submitted(0)]), num_nodes=8, checkpoint_bytes=size, now=0
    )
    assert unmeasured == interval.interval_s(interval.expected_save_s(size, 8), interval.mtbf_s(8))
