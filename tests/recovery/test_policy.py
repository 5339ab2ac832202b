"""What follows the end of an attempt: a table over causes and budgets, and that no story outspends them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import RETRIED, Budgets, Ended, decide

PLENTY = Budgets(max_crashes=3, max_no_progress=3, max_gpu_hours=100.0)
FINAL = [cause for cause in Cause if cause not in RETRIED]

ENDS = st.builds(
    Ended,
    cause=st.sampled_from(Cause),
    start_step=st.integers(0, 20),
    checkpoint_step=st.integers(0, 20),
    gpu_hours=st.floats(0, 10),
)
CRASHES = st.builds(
    Ended,
    cause=st.sampled_from(RETRIED),
    start_step=st.integers(0, 5),
    checkpoint_step=st.integers(0, 8),
    gpu_hours=st.floats(0, 3),
)
BUDGETS = st.builds(
    Budgets,
    max_crashes=st.integers(0, 6),
    max_no_progress=st.integers(1, 4),
    max_gpu_hours=st.none() | st.floats(0.1, 30),
)


def moved(cause: Cause = Cause.CRASH, gpu_hours: float = 1.0) -> Ended:
    """An attempt that left a newer checkpoint than it found."""
    return Ended(cause, start_step=10, checkpoint_step=20, gpu_hours=gpu_hours)


def stuck(cause: Cause = Cause.CRASH, gpu_hours: float = 1.0) -> Ended:
    """An attempt that left the checkpoint it found."""
    return Ended(cause, start_step=10, checkpoint_step=10, gpu_hours=gpu_hours)


# history of a retried cause → what it says, and whether the run starts again
STATES: dict[str, tuple[list[Ended], Budgets, bool, str]] = {
    "something left of each": ([moved()], PLENTY, True, "crash 1 of at most 3: starting again from step 20"),
    "the last crash allowed": ([moved(), moved(), moved()], PLENTY, True, "crash 3 of at most 3"),
    "one crash too many": ([moved()] * 4, PLENTY, False, "4 crashes (recovery.max_crashes=3)"),
    "no crash allowed": ([moved()], Budgets(0, 3, None), False, "1 crashes (recovery.max_crashes=0)"),
    "one attempt for nothing": ([stuck()], PLENTY, True, "starting again from step 10"),
    "too many for nothing": (
        [moved(), stuck(), stuck(), stuck()],
        Budgets(9, 3, None),
        False,
        "3 attempts in a row left no newer checkpoint (recovery.max_no_progress=3)",
    ),
    "progress in between": ([stuck(), stuck(), moved(), stuck()], Budgets(9, 3, None), True, "crash 4 of at most 9"),
    "a step back is no progress": (
        [Ended(Cause.CRASH, 20, 10, 1.0)] * 2,
        Budgets(9, 2, None),
        False,
        "2 attempts in a row left no newer checkpoint",
    ),
    "hours left": ([moved(gpu_hours=99.9)], PLENTY, True, "crash 1"),
    "hours spent": ([moved(gpu_hours=60.0), moved(gpu_hours=40.0)], PLENTY, False, "run.max_gpu_hours=100 spent"),
    "no limit on hours": ([moved(gpu_hours=1e9)], Budgets(3, 3, None), True, "crash 1"),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("cause", RETRIED)
def test_a_failure_is_tried_again_while_there_is_something_left_of_each_budget(cause: Cause, state: str) -> None:
    history, budgets, restart, why = STATES[state]
    ends = [Ended(cause, end.start_step, end.checkpoint_step, end.gpu_hours) for end in history]
    decision = decide(ends, budgets)
    assert decision.restart is restart
    assert why in decision.why


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("cause", FINAL)
def test_what_is_no_matter_of_trying_again_never_is(cause: Cause, state: str) -> None:
    history, budgets, _, _ = STATES[state]
    decision = decide([*history, moved(cause)], budgets)
    assert not decision.restart
    assert decision.why.startswith(f"{cause}: ")


def test_crashes_are_the_only_causes_tried_again_in_place() -> None:
    assert set(RETRIED) == {Cause.CRASH, Cause.KILLED, Cause.HANG, Cause.OUT_OF_MEMORY, Cause.GPU_OUT_OF_MEMORY}


def test_other_causes_do_not_use_up_crashes() -> None:
    history = [moved(Cause.LOST), moved(Cause.TIME_LIMIT), moved(Cause.STOPPED), moved()]
    assert "crash 1 of at most 1" in decide(history, Budgets(1, 3, None)).why


def lived(ends: list[Ended], budgets: Budgets) -> list[Ended]:
    """The attempts of `ends` that there are before the policy stops the run."""
    for number in range(1, len(ends) + 1):
        if not decide(ends[:number], budgets).restart:
            return ends[:number]
    return ends


@settings(deadline=None)
@given(st.lists(ENDS | CRASHES, min_size=1, max_size=12), BUDGETS)
def test_no_story_starts_again_more_often_than_its_budgets_allow(ends: list[Ended], budgets: Budgets) -> None:
    attempts = lived(ends, budgets)
    restarted = attempts[:-1]
    assert len(restarted) <= budgets.max_crashes
    assert all(end.cause in RETRIED for end in restarted)
    if budgets.max_gpu_hours is not None:
        assert sum(end.gpu_hours for end in restarted) < budgets.max_gpu_hours or not restarted
    for_nothing = [end.checkpoint_step <= end.start_step for end in restarted]
    row = 0
    for nothing in for_nothing:
        row = row + 1 if nothing else 0
        assert row < budgets.max_no_progress


@settings(deadline=None)
@given(st.lists(CRASHES, min_size=1, max_size=10), BUDGETS)
def test_a_run_stops_only_where_a_budget_is_spent(ends: list[Ended], budgets: Budgets) -> None:
    attempts = lived(ends, budgets)
    if decide(attempts, budgets).restart:
        return
    row = next((n for n, end in enumerate(reversed(attempts)) if end.checkpoint_step > end.start_step), len(attempts))
    spent = sum(end.gpu_hours for end in attempts)
    assert (
        len(attempts) > budgets.max_crashes
        or row >= budgets.max_no_progress
        or (budgets.max_gpu_hours is not None and spent >= budgets.max_gpu_hours)
    )


@settings(deadline=None)
@given(st.lists(CRASHES, min_size=1, max_size=8), BUDGETS, st.integers(0, 3), st.integers(0, 3))
def test_more_budget_never_stops_a_run_earlier(ends: list[Ended], less: Budgets, crashes: int, nothing: int) -> None:
    more = Budgets(less.max_crashes + crashes, less.max_no_progress + nothing, None)
    assert len(lived(ends, more)) >= len(lived(ends, less))


@settings(deadline=None)
@given(st.lists(CRASHES, min_size=2, max_size=8), BUDGETS)
def test_a_run_that_was_stopped_stays_stopped_however_it_fails_again(ends: list[Ended], budgets: Budgets) -> None:
    """Crashes and hours never come back; progress alone may give a run that ran in place another chance."""
    histories = [ends[:number] for number in range(1, len(ends) + 1)]
    for before, after in pairwise(histories):
        spent = "crashes (" in decide(before, budgets).why or "spent" in decide(before, budgets).why
        assert not (spent and decide(after, budgets).restart)
