"""The ledger as the policy reads it."""

from __future__ import annotations

from typing import Any

import pytest

from hpc_llm.recovery.budgets import Ended
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.story import fold


def event(time: float, name: str, writer: str = "", **facts: Any) -> Event:
    return Event(time, name, writer or f"supervisor-{facts.get('attempt', 1):04d}", facts)


def ends(events: list[Event], newest_checkpoint: int, **known: int) -> list[Ended]:
    return attempts_since_submission(fold(events), newest_checkpoint, **known)


def started(time: float, attempt: int, step: int = 0) -> Event:
    return event(time, "started", attempt=attempt, checkpoint_step=step, nodes=["n1", "n2"])


def test_what_was_before_the_users_last_submission_counts_no_more() -> None:
    events = [
        event(0, "submitted", "submit"),
        started(1, 1),
        event(5, "submitted", "submit"),
        started(6, 2, 30),
    ]
    (end,) = ends(events, 40)
    assert (end.start_step, end.checkpoint_step, end.cause) == (30, 40, Cause.LOST)


@pytest.mark.parametrize("told", [{"after_attempt": 1}, {"job": "12"}], ids=["by number", "by job"])
def test_clocks_that_differ_leave_no_attempt_out(told: dict[str, Any]) -> None:
    job = {"job": told["job"]} if "job" in told else {}
    events = [
        event(0, "submitted", "submit"),
        started(1, 1),
        event(60, "submitted", "submit", **told),
    ]
    begun = event(
        30, "started", attempt=2, checkpoint_step=30, **job
    )  # that node's clock is a minute behind
    ended = event(40, "ended", attempt=2, cause="crash", checkpoint_step=35)
    assert [end.cause for end in ends([*events, begun, ended], 35)] == [Cause.CRASH]
    assert ends(events, 35) == []


def test_a_launch_that_failed_counts_whatever_the_watchdogs_clock_says() -> None:
    failed = {"cause": "launch-failed", "job": "12"}
    events = [
        event(0, "released", "watchdog-a-1", after_attempt=0, **failed),  # a minute behind
        event(60, "submitted", "submit", after_attempt=0, job="12"),
        event(70, "started", attempt=1, checkpoint_step=0, job="12"),
        event(80, "ended", attempt=1, cause="crash", checkpoint_step=5),
    ]
    assert [end.cause for end in ends(events, 5)] == [Cause.LAUNCH_FAILED, Cause.CRASH]
    late = event(900, "requeued", "watchdog-a-1", after_attempt=0, cause="launch-failed", job="12")
    assert [end.cause for end in ends([*events[1:], late], 5)][-1] is Cause.CRASH


def test_an_attempt_that_said_nothing_got_as_far_as_the_next_one_found_it() -> None:
    events = [event(0, "submitted", "submit"), started(1, 1), started(9, 2, 20)]
    assert [end.checkpoint_step for end in ends(events, 50)] == [20, 50]


def test_hours_that_nobody_added_up_are_those_between_first_and_last_word() -> None:
    events = [event(0, "submitted", "submit"), started(0, 1)]
    events += [event(3600, "checkpointed", "train-0001", attempt=1, step=9), started(9000, 2)]
    assert [end.gpu_hours for end in ends(events, 9, held_gpus=4)] == [
        4.0,
        0.0,
    ]
    assert ends(events, 9)[0].gpu_hours == 0.0


@pytest.mark.parametrize(
    ("rank", "node"), [(0, "n1"), (3, "n1"), (4, "n2"), (7, "n2"), (None, None), (99, None)]
)
def test_ranks_lie_in_blocks_on_the_nodes(rank: int | None, node: str | None) -> None:
    events = [event(0, "submitted", "submit"), started(1, 1)]
    events += [event(2, "ended", attempt=1, cause="crash", first_failed=rank, checkpoint_step=0)]
    assert ends(events, 0, world_size=8)[0].node == node


def test_who_dies_first_of_the_abort_after_a_hang_says_nothing_of_its_node() -> None:
    events = [event(0, "submitted", "submit"), started(1, 1)]
    hang = event(2, "ended", attempt=1, cause="hang", first_failed=4, checkpoint_step=0)
    assert ends([*events, hang], 0, world_size=8)[0].node is None
    told = event(2, "ended", attempt=1, cause="hang", first_failed=4, checkpoint_step=0, node="n1")
    assert ends([*events, told], 0, world_size=8)[0].node == "n1"


def test_a_failure_of_a_node_that_is_excluded_later_is_the_nodes() -> None:
    events = [
        event(0, "submitted", "submit"),
        started(1, 1),
        event(2, "ended", attempt=1, cause="killed", node="n2"),
    ]
    assert not ends(events, 0)[0].node_excluded
    assert ends([*events, event(3, "excluded", "watchdog-a-1", nodes=["n2"])], 0)[0].node_excluded


def test_a_failure_of_a_node_that_was_given_back_is_the_runs() -> None:
    events = [event(0, "submitted", "submit"), event(1, "excluded", "watchdog-a-1", nodes=["n2"])]
    events += [started(2, 1), event(3, "ended", attempt=1, cause="killed", node="n2")]
    back = event(4, "readmitted", "watchdog-a-1", nodes=["n2"])
    events += [back, started(5, 2), event(6, "ended", attempt=2, cause="killed", node="n2")]
    assert [end.node_excluded for end in ends(events, 0)] == [True, False]
    again = event(7, "excluded", "watchdog-a-1", nodes=["n2"])
    assert [end.node_excluded for end in ends([*events, again], 0)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("act", ["released", "resubmitted", "requeued"])
def test_jobs_that_never_began_are_counted_where_they_happened(act: str) -> None:
    events = [
        event(0, "submitted", "submit"),
        event(5, act, "watchdog-a-1", cause="launch-failed"),
        started(9, 1),
    ]
    assert [end.cause for end in ends(events, 0)] == [
        Cause.LAUNCH_FAILED,
        Cause.LOST,
    ]
    assert len(ends([*events, event(12, act, "watchdog-a-1")], 0)) == 2
