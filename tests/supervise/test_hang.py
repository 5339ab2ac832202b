"""Beats over time: what is a hang and what is only slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.runs.heartbeat import Beat, Phase
from hpc_llm.supervise.ending import judge
from hpc_llm.supervise.hang import (
    ASK_S,
    HOLD_TIMEOUT_S,
    LONG_FLOOR_S,
    SHORT_FLOOR_S,
    Hang,
    HangWatch,
    HoldTimeout,
    behind,
    limit_s,
)
from hpc_llm.supervise.steps import StepEnd
from tests.supervise.places import Allocation, planned_attempt, watch_of

FLOOR_S = 60.0
START_S = 600.0


def beat(count: int, phase: Phase = Phase.TRAINING, usual_s: float = 1.0) -> Beat:
    return Beat(attempt=1, step=count, phase=phase, usual_s=usual_s, step_s=usual_s, count=count)


@pytest.mark.parametrize(
    ("seen", "limit"),
    [
        (None, START_S),
        (beat(1, Phase.STARTING, 0.0), START_S),
        (beat(1, usual_s=0.0), START_S),  # the first steps
        (beat(9, usual_s=0.1), FLOOR_S),
        (beat(9, usual_s=30.0), 600.0),  # slow steps are given twenty times their time
        (beat(9, Phase.SAVING, 0.0), START_S),  # no save seen yet
        (beat(9, Phase.SAVING, 2.0), FLOOR_S),
        (beat(9, Phase.LEAVING, 0.0), FLOOR_S),
        (beat(9, Phase.LEAVING, 30.0), 600.0),
        (beat(9, Phase.HOLDING, 0.0), float("inf")),
    ],
)
def test_what_is_allowed_rests_on_what_the_run_itself_took(seen: Beat | None, limit: float) -> None:
    assert limit_s(seen, FLOOR_S, START_S) == limit


@pytest.mark.parametrize(
    ("seen", "limit"),
    [
        (beat(9, usual_s=0.1), 60.0),  # short steps: a minute
        (beat(9, usual_s=30.0), 600.0),
        (beat(1, usual_s=0.0), START_S),  # the first steps, which may compile
        (beat(9, Phase.SAVING, 0.5), 300.0),
        (beat(9, Phase.EVALUATING, 40.0), 800.0),
        (beat(9, Phase.LOADING, 2.0), 300.0),
        (beat(9, Phase.LEAVING, 0.0), 300.0),
        (None, START_S),
    ],
)
def test_a_floor_that_nobody_gave_follows_from_what_the_ranks_do(
    seen: Beat | None, limit: float
) -> None:
    assert limit_s(seen, "auto", START_S) == limit


def test_time_in_which_nobody_could_look_is_no_silence() -> None:
    """A file system that stands still holds up ranks and supervisor alike."""
    watch = HangWatch("auto", START_S, now=0.0)
    assert watch.look({"n1": beat(5)}, 5.0) is None
    assert watch.look({"n1": beat(5)}, 200.0) is None
    for second in range(205, 250, 5):
        assert watch.look({"n1": beat(5)}, float(second)) is None
    assert watch.look({"n1": beat(5)}, 270.0) is not None


def test_silence_beyond_the_limit_is_a_hang_and_says_where() -> None:
    watch = HangWatch(FLOOR_S, START_S, now=0.0)
    assert watch.look({}, 100.0) is None
    for second in range(200, 260, 20):
        assert watch.look({"n1": beat(5)}, float(second)) is None
    assert watch.look({"n1": beat(5)}, 259.0) is None
    found = watch.look({"n1": beat(5)}, 261.0)
    assert found is not None
    assert (found.phase, found.step, found.silent_s, found.limit_s) == (
        Phase.TRAINING,
        5,
        61.0,
        FLOOR_S,
    )


def test_one_node_that_beats_clears_all_for_no_step_ends_without_every_rank() -> None:
    watch = HangWatch(FLOOR_S, START_S, now=0.0)
    for second in range(0, 1000, 30):
        assert watch.look({"n1": beat(1), "n2": beat(second + 1)}, float(second)) is None


@pytest.mark.parametrize(
    ("phase", "limit"),
    [
        (Phase.LOADING, LONG_FLOOR_S),
        (Phase.SAVING, LONG_FLOOR_S),
        (Phase.EVALUATING, LONG_FLOOR_S),
        (Phase.STARTING, LONG_FLOOR_S),
        (Phase.TRAINING, SHORT_FLOOR_S),
    ],
)
@pytest.mark.parametrize("names", [("n1", "n2"), ("n2", "n1")])
def test_the_node_that_all_others_wait_for_has_the_time_of_what_it_does(
    phase: Phase, limit: float, names: tuple[str, str]
) -> None:
    """Whichever of them was seen last."""
    slow, fast = names
    watch = HangWatch("auto", START_S, now=0.0)
    beats = {slow: beat(7, phase, 0.5), fast: beat(7, usual_s=0.5)}
    looks = [watch.look(beats, float(second)) for second in range(0, int(limit) + 20, 10)]
    assert looks[-1] is not None and looks[-1].limit_s == limit
    assert looks[-3] is None


def test_ranks_that_never_beat_hang_at_their_start() -> None:
    watch = HangWatch(FLOOR_S, START_S, now=0.0)
    looks = [watch.look({}, float(second)) for second in range(0, int(START_S) + 20, 10)]
    found = looks[-1]
    assert found is not None and looks[-3] is None
    assert found.phase is Phase.STARTING


HOLDING = {"n1": beat(9, Phase.HOLDING), "n2": beat(9, Phase.HOLDING)}


def expired_after(answers: list[bool | None], beats: dict[str, Beat] = HOLDING) -> float | None:
    """After how many seconds a hold expires; Slurm is asked as often as is due."""
    watch = HoldTimeout()
    left = iter(answers)
    for second in range(0, 1000, 5):
        if watch.is_due(beats, second):
            answer = next(left, "over")
            if answer == "over":
                return None
            if watch.expired(answer, second):  # type: ignore[arg-type]
                return second
    return None


def test_ranks_that_nobody_ends_wait_in_vain_after_a_minute() -> None:
    assert expired_after([False] * 99) == HOLD_TIMEOUT_S


def test_a_job_that_is_being_ended_is_waited_for() -> None:
    assert expired_after([True] * 50) is None
    assert expired_after([None] * 50) is None
    assert expired_after([False, False, True, *[False] * 99]) == 3 * ASK_S + HOLD_TIMEOUT_S
    assert expired_after([False, None, None, False]) == HOLD_TIMEOUT_S


def test_ranks_of_which_one_node_trains_or_none_is_seen_do_not_hold() -> None:
    assert expired_after([False] * 99, {**HOLDING, "n2": beat(9)}) is None
    assert expired_after([False] * 99, {}) is None


@pytest.mark.parametrize(
    ("steps", "step_s", "node"),
    [
        ({"n1": 7, "n2": 7}, 5.0, None),
        ({"n1": 7, "n2": 6}, 5.0, "n2"),
        ({"n1": 7, "n2": 6, "n3": 6}, 5.0, None),
        ({"n1": 50, "n2": 47}, 0.1, None),  # the file is written once a second
        ({"n1": 50, "n2": 30}, 0.1, "n2"),
        ({"n1": 50}, 5.0, None),
        ({"n1": 1, "n2": 0}, 0.0, None),  # nobody knows yet what a step takes
        ({}, 1.0, None),
    ],
)
def test_a_node_is_blamed_for_a_hang_only_where_it_alone_is_behind(
    steps: dict[str, int], step_s: float, node: str | None
) -> None:
    assert behind({name: beat(step, usual_s=step_s) for name, step in steps.items()}) == node


def test_a_node_whose_ranks_have_left_is_not_behind() -> None:
    """Their last sign names no step."""
    assert behind({"n1": beat(50, usual_s=5.0), "n2": beat(0, Phase.LEAVING, 5.0)}) is None


@pytest.mark.parametrize(("node", "blamed"), [("n2", "n2"), (None, None), ("login", None)])
def test_who_dies_first_of_the_abort_is_not_to_blame(
    tmp_path: Path, node: str | None, blamed: str | None
) -> None:
    attempt = planned_attempt(tmp_path, world_size=2, steps=8)
    place = Allocation(hosts=["n1", "n2"])
    watch = watch_of(attempt, place)
    watch.hang = Hang(Phase.TRAINING, 5, 61.0, FLOOR_S, node)
    ending = judge(StepEnd({0: -6, 1: -6}, 0), watch, place, attempt)
    assert ending.node == blamed
