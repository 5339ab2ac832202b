"""A budget fills up again with what the run saves, and with nothing else."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.recovery.budgets import REFILL_S, Budgets, Ended, counted, exhausted, spent_of
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.policy import ELSEWHERE, IN_PLACE, Action, decide_inside
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.story import fold

DAY = 86400.0
STEPS = 100_000
BUDGETS = Budgets(max_crashes=3, max_no_progress=3, max_gpu_hours=None, steps=STEPS)
ONE_OF_EACH = replace(
    BUDGETS,
    max_crashes=1,
    max_hangs=1,
    max_node_failures=1,
    max_launch_failures=1,
    max_divergences=1,
    max_preemptions=1,
)
RETRIED = sorted(IN_PLACE | ELSEWHERE)
# Interruptions of Llama 3's 54 days on 16,384 GPUs, arXiv 2407.21783, section 3.3.4.
PER_GPU_DAY = 419 / 54 / 16384
# What they would be here: most are GPUs and hosts, of which about half end the node.
MIX = {Cause.NODE_FAILURE: 0.45, Cause.CRASH: 0.35, Cause.HANG: 0.2}


def train(start: int, steps: int, days: float, cause: Cause = Cause.CRASH) -> Ended:
    """An attempt that saved so many steps in so many days of training before it ended."""
    return Ended(cause, start, start + steps, 1.0, trained_s=days * DAY)


def in_a_row(number: int, steps: int, days: float) -> list[Ended]:
    return [train(index * steps, steps, days) for index in range(number)]


@pytest.mark.parametrize("cause", sorted(set(RETRIED) - {Cause.LAUNCH_FAILED}))
def test_steady_progress_never_stops_a_run_whatever_ends_its_attempts(cause: Cause) -> None:
    history: list[Ended] = []
    for start in range(0, 80 * 1000, 1000):
        history.append(train(start, 1000, 1.01, cause))
        assert decide_inside(history, ONE_OF_EACH).action is not Action.STOP


@pytest.mark.parametrize(
    ("steps", "days"),
    [
        (1, 1e-3),  # a step an attempt
        (1, 2.0),  # time alone: the run crawls
        (5000, 0.01),  # steps alone: of a run that is over in half an hour
        (999, 0.32),  # a little less than three attempts would need
    ],
)
def test_too_little_progress_forgives_nothing(steps: int, days: float) -> None:
    assert exhausted(in_a_row(4, steps, days), BUDGETS) == "4 crashes (recovery.max_crashes=3)"


def test_both_a_day_and_a_hundredth_of_the_steps_are_asked_for() -> None:
    first = train(0, 10, 0.1)
    assert counted([first, train(10, 999, 2.0)], BUDGETS)[0] is first
    assert counted([first, train(10, 1000, 0.99)], BUDGETS)[0] is first
    assert first not in counted([first, train(10, 1000, 1.0)], BUDGETS)


def test_steps_that_are_trained_again_forgive_nothing_again() -> None:
    gained = train(0, 4000, 3.0)
    again = [replace(gained, start_step=100, cause=Cause.CRASH) for _ in range(4)]
    assert len(counted([gained, *again], BUDGETS)) == 5
    further = replace(again[0], checkpoint_step=4000 + 3900)  # half of that is new
    assert len(counted([gained, *again, further], BUDGETS)) == 1


def test_what_was_forgiven_is_told_neither_as_spent_nor_in_the_reason() -> None:
    history = [train(0, 10, 0.1), train(10, 2000, 2.0)]
    (spending,) = spent_of(history, BUDGETS)
    assert (spending.budget, spending.used, spending.limit) == ("max_crashes", 1, 3)
    assert "crash 1 of at most 3" in decide_inside(history, BUDGETS).why


ANY = st.builds(
    Ended,
    cause=st.sampled_from(RETRIED),
    start_step=st.integers(0, 3000),
    checkpoint_step=st.integers(0, 6000),
    gpu_hours=st.just(1.0),
    node_excluded=st.booleans(),
    trained_s=st.floats(0, 3 * DAY),
)


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=25))
def test_all_that_is_spent_is_bounded_by_what_was_saved(story: list[Ended]) -> None:
    lived: list[Ended] = []
    for end in story:
        lived.append(end)
        if exhausted(lived, ONE_OF_EACH):
            break
    highest = max(max(end.start_step, end.checkpoint_step) for end in lived)
    refills = min(highest // 1000, sum(end.trained_s for end in lived) // REFILL_S)
    charged = Counter(
        "nodes" if end.node_excluded or end.cause is Cause.NODE_FAILURE else end.cause
        for end in lived
        if end.cause in (Cause.CRASH, Cause.HANG, Cause.DIVERGED, Cause.NODE_FAILURE)
    )
    for used in charged.values():
        assert used <= 2 * (refills + 1)


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=12), st.floats(0, 1))
def test_more_progress_never_counts_more_ends(story: list[Ended], share: float) -> None:
    slower = [replace(end, trained_s=end.trained_s * share) for end in story]
    assert len(counted(story, BUDGETS)) <= len(counted(slower, BUDGETS))


def saved(time: float, attempt: int, step: int, **facts: float) -> Event:
    told = {"attempt": attempt, "step": step, **facts}
    return Event(time, "checkpointed", f"train-{attempt:04d}", told)


@pytest.mark.parametrize(
    ("saves", "trained_s"),
    [
        # the clock of the node jumped by a year between two saves
        ([saved(60, 1, 100, trained_s=50.0), saved(3e7, 1, 200, trained_s=110.0)], 110.0),
        ([saved(60, 1, 100), saved(160, 1, 200)], 100.0),  # of an earlier version
        ([saved(60, 1, 100), saved(10, 1, 200)], 0.0),  # … whose clock went back
        ([saved(60, 1, 100, trained_s=50.0), saved(99, 1, 900, trained_s=89.0)], 50.0),  # lost
        ([], 0.0),
    ],
)
def test_training_is_measured_by_a_clock_that_nobody_sets(
    saves: list[Event], trained_s: float
) -> None:
    began = Event(0, "started", "supervisor-0001", {"attempt": 1, "checkpoint_step": 0})
    (end,) = attempts_since_submission(fold([began, *saves]), 200)
    assert end.trained_s == trained_s


def life(chance: random.Random, gpus: int, days: float, refilled: bool) -> bool:
    """Whether a run of so many days of training gets through its interruptions."""
    budgets = Budgets(max_crashes=3, max_no_progress=3, max_gpu_hours=None, steps=STEPS)
    steps_per_day = STEPS / days
    trained = 0.0
    history: list[Ended] = []
    while True:
        until = trained + chance.expovariate(PER_GPU_DAY * gpus)
        if until >= days:
            return True
        cause = chance.choices(list(MIX), list(MIX.values()))[0]
        kept = max(trained, until - chance.uniform(0, 1 / 24))  # a save every hour
        start, end = (int(at * steps_per_day) for at in (trained, kept))
        seconds = (kept - trained) * DAY if refilled else 0.0
        history.append(Ended(cause, start, end, 1.0, trained_s=seconds))
        if decide_inside(history, budgets).action is Action.STOP:
            return False
        trained = kept


@pytest.mark.parametrize(("gpus", "days"), [(512, 37.0), (512, 110.0), (1024, 54.0)])
def test_a_long_run_outlives_the_failures_of_its_size(gpus: int, days: float) -> None:
    survived = [life(random.Random(seed), gpus, days, True) for seed in range(200)]
    assert sum(survived) >= 195
    before = [life(random.Random(seed), gpus, days, False) for seed in range(200)]
    assert sum(before) < 150
