"""The ledger, folded once into what happened to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.story import fold, read_story


def event(time: float, name: str, writer: str = "", **facts: Any) -> Event:
    return Event(time, name, writer or f"supervisor-{facts.get('attempt', 1):04d}", facts)


def started(time: float, attempt: int, **facts: Any) -> Event:
    return event(time, "started", attempt=attempt, checkpoint_step=10 * (attempt - 1), **facts)


def test_an_attempt_holds_everything_that_was_written_about_it() -> None:
    story = fold(
        [
            event(0, "submitted", "submit", job="12"),
            started(5, 1, job="12", restarts=2, nodes=["n1", "n2"], host="n1", pid=7),
            event(6, "resumed", "train-0001", attempt=1, step=0),
            event(9, "checkpointed", "train-0001", attempt=1, step=10, seconds=0.5),
            event(11, "hang", attempt=1, silent_s=3.0),
            event(12, "ended", attempt=1, cause="hang", node="n2", gpu_hours=0.1),
            started(20, 2, job="12"),
        ]
    )
    first, second = story.attempts
    assert (first.number, first.time, first.start_step, first.resumed_at) == (1, 5, 0, 6)
    assert (first.job, first.restarts, first.nodes) == ("12", 2, ("n1", "n2"))
    assert [(save.step, save.seconds) for save in first.saves] == [(10, 0.5)]
    assert first.end is not None
    assert (first.end.cause, first.end.node, first.end.gpu_hours) == ("hang", "n2", 0.1)
    assert (first.silent_s, first.last_sign, first.seen_s) == (3.0, 12, 7)
    assert (second.start_step, second.end, second.saves) == (10, None, ())
    assert (story.newest_attempt, story.newest_saved_step) == (2, 10)


def test_what_a_watchdog_notes_later_is_no_sign_of_life() -> None:
    story = fold([started(0, 1), event(90, "ended", "watchdog-a-1", attempt=1, cause="lost", at=8)])
    (attempt,) = story.attempts
    assert (attempt.last_sign, attempt.seen_s) == (0, 0)
    assert attempt.end is not None
    assert (attempt.end.time, attempt.end.at) == (90, 8)


def test_events_and_keys_of_other_versions_are_passed_over() -> None:
    story = fold(
        [
            event(0, "invented", "train-0001", attempt=1, anything=[1]),
            started(1, 1, colour="red"),
            event(2, "diverged", "train-0001"),
            event(3, "slow-rank", "train-0001"),
            event(4, "rung", "train-0001"),
            event(5, "excluded", "watchdog-a-1"),
            event(6, "ended", attempt=1),
        ]
    )
    assert story.attempts[0].end is not None
    assert story.attempts[0].end.cause is None
    assert story.diverged_data_steps == story.slow_ranks == story.rungs == ()
    assert story.node_changes[0].nodes == ()


def test_an_attempt_without_a_number_is_a_damaged_ledger() -> None:
    with pytest.raises(KeyError):
        fold([event(0, "started", checkpoint_step=0)])


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    line = json.dumps({"time": 1.0, "event": "submitted", "job": "12"})
    (tmp_path / "submit.jsonl").write_text(f'{line}\n[]\n{{"time": 2.0}}\n{line[:20]}')
    story = read_story(tmp_path)
    assert [sent.name for sent in story.sendings] == [event_names.SUBMITTED]
    assert story.jobs == ("12",)


def test_a_run_is_complete_once_it_has_said_so_whatever_follows(tmp_path: Path) -> None:
    ledger.Ledger(tmp_path, "supervisor-0001").write("ended", attempt=1)
    assert not read_story(tmp_path).has_reached(10)
    ledger.Ledger(tmp_path, "supervisor-0002").write("completed", attempt=2)
    ledger.Ledger(tmp_path, "watchdog-x").write("cancelled")
    assert read_story(tmp_path).has_reached(10)


@pytest.mark.parametrize(
    ("names", "waiting"),
    [
        ([], False),
        (["submitted"], False),
        (["submitted", "waiting"], True),
        (["waiting", "submitted"], False),
        (["waiting", "started"], False),
        (["waiting", "excluded"], True),
    ],
)
def test_a_run_waits_for_room_until_it_is_sent(names: list[str], waiting: bool) -> None:
    facts = {"attempt": 1, "checkpoint_step": 0, "nodes": []}
    events = [event(time, name, "submit", **facts) for time, name in enumerate(names)]
    assert fold(events).is_waiting() is waiting


def test_the_newest_job_is_that_of_the_last_submission_or_attempt() -> None:
    events = [
        event(0, "submitted", "submit", job="12"),
        event(1, "successor", "successor-12", job="13"),
        started(2, 1, job="13"),
        event(3, "waiting", "submit"),
    ]
    story = fold(events)
    assert story.newest_job() == "13"
    assert story.newest_job(after=3) is None
    assert story.jobs == ("12", "13", "13")


def test_only_what_follows_the_users_last_submission_is_the_submissions() -> None:
    story = fold(
        [
            event(0, "submitted", "submit"),
            started(1, 1),
            event(2, "ended", attempt=1, cause="crash"),
            event(3, "excluded", "watchdog-a-1", nodes=["n1"]),
            event(5, "submitted", "submit", after_attempt=1),
            started(4, 2),  # the clock of its node is behind
            event(6, "requeued", attempt=2),
        ]
    ).since_submission()
    assert [attempt.number for attempt in story.attempts] == [2]
    assert [sent.name for sent in story.sendings] == ["submitted", "requeued"]
    assert story.ends == story.node_changes == ()
