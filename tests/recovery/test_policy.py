"""What follows the end of an attempt: a table over every cause and every state of the budgets."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.recovery.budgets import Budgets, Ended, exhausted, seconds_left
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import ELSEWHERE, FINAL, IN_PLACE, Action, Cluster, decide_inside
from tests.configs import make_config

PLENTY = Budgets(
    max_crashes=3,
    max_no_progress=3,
    max_gpu_hours=100.0,
    max_hangs=3,
    max_node_failures=3,
    max_launch_failures=3,
    max_out_of_memory=3,
    max_divergences=3,
    max_preemptions=3,
    max_admin_cancels=3,
)
# cause → the budget that its ends are charged to
BUDGET_OF = {
    Cause.CRASH: "max_crashes",
    Cause.KILLED: "max_crashes",
    Cause.HANG: "max_hangs",
    Cause.OUT_OF_MEMORY: "max_out_of_memory",
    Cause.GPU_OUT_OF_MEMORY: "max_out_of_memory",
    Cause.DIVERGED: "max_divergences",
    Cause.NODE_FAILURE: "max_node_failures",
    Cause.ORPHANED: "max_node_failures",
    Cause.LAUNCH_FAILED: "max_launch_failures",
    Cause.PREEMPTED: "max_preemptions",
    Cause.ADMIN_CANCEL: "max_admin_cancels",
}
RETRIED = sorted(IN_PLACE | ELSEWHERE)
# Of jobs in which an attempt began, and that nobody cancelled.
TELLING = sorted(set(RETRIED) - {Cause.LAUNCH_FAILED, Cause.ADMIN_CANCEL})


def ends(cause: Cause) -> st.SearchStrategy[Ended]:
    return st.builds(
        Ended,
        cause=st.just(cause),
        start_step=st.integers(0, 5),
        checkpoint_step=st.integers(0, 8),
        gpu_hours=st.floats(0, 3),
        node=st.none() | st.sampled_from(["n1", "n2"]),
        node_excluded=st.booleans(),
    )


ANY = st.sampled_from(RETRIED).flatmap(ends)
FEW = st.integers(0, 4)
BUDGETS = st.builds(
    Budgets,
    max_crashes=FEW,
    max_no_progress=st.integers(1, 4),
    max_gpu_hours=st.none() | st.floats(0.1, 30),
    max_hangs=FEW,
    max_node_failures=FEW,
    max_launch_failures=FEW,
    max_out_of_memory=FEW,
    max_divergences=FEW,
    max_preemptions=st.none() | FEW,
)


def moved(cause: Cause, gpu_hours: float = 1.0) -> Ended:
    """An attempt that left a newer checkpoint than it found."""
    return Ended(cause, start_step=10, checkpoint_step=20, gpu_hours=gpu_hours)


def stuck(cause: Cause, gpu_hours: float = 1.0) -> Ended:
    """An attempt that left the checkpoint it found."""
    return Ended(cause, start_step=10, checkpoint_step=10, gpu_hours=gpu_hours)


@pytest.mark.parametrize("cause", RETRIED)
def test_with_something_left_of_each_budget_the_run_goes_on(cause: Cause) -> None:
    decision = decide_inside([moved(cause)], PLENTY)
    assert decision.action is (Action.RESTART_STEP if cause in IN_PLACE else Action.REQUEUE)
    assert decision.restart is (cause in IN_PLACE)
    assert "starting again from step 20" in decision.why
    assert decision.cause is cause


@pytest.mark.parametrize("cause", sorted(FINAL - {Cause.HOURS_SPENT}))
@pytest.mark.parametrize("before", [[], [moved(Cause.CRASH)], [stuck(Cause.LOST)] * 9])
def test_what_is_no_matter_of_trying_again_never_is(cause: Cause, before: list[Ended]) -> None:
    decision = decide_inside([*before, moved(cause)], PLENTY)
    assert decision.action is Action.STOP
    assert decision.why == f"{cause}: a restart would not help"


def test_hours_that_are_spent_end_a_run_and_the_key_that_mends_it_is_named() -> None:
    decision = decide_inside([moved(Cause.HOURS_SPENT)], PLENTY)
    assert (decision.action, decision.why) == (Action.STOP, "run.max_gpu_hours=100 spent")


def test_an_attempt_may_train_until_the_hours_of_all_its_gpus_are_spent() -> None:
    assert seconds_left([replace(moved(Cause.CRASH), gpu_hours=90.0)], PLENTY, 4) == 10 / 4 * 3600
    assert seconds_left([replace(moved(Cause.CRASH), gpu_hours=900.0)], PLENTY, 4) == 0.0
    assert seconds_left([], replace(PLENTY, max_gpu_hours=None), 4) == float("inf")


def test_every_cause_is_ended_in_place_elsewhere_or_for_good() -> None:
    assert set(Cause) == IN_PLACE | ELSEWHERE | FINAL
    assert not IN_PLACE & ELSEWHERE
    assert {
        Cause.COMPLETED,
        Cause.CANCELLED,
        Cause.STOPPED,
        Cause.CONFIG_ERROR,
        Cause.FENCED,
    } <= FINAL


@pytest.mark.parametrize("cause", BUDGET_OF)
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_last_retry_allowed_is_taken_and_no_other(cause: Cause, limit: int) -> None:
    budgets = replace(PLENTY, **{BUDGET_OF[cause]: limit})
    history = [moved(cause)] * limit
    assert not history or decide_inside(history, budgets).action is not Action.STOP
    decision = decide_inside([*history, moved(cause)], budgets)
    assert decision.action is Action.STOP
    if not (cause is Cause.DIVERGED and limit == 0):
        assert f"(recovery.{BUDGET_OF[cause]}={limit})" in decision.why


@pytest.mark.parametrize("cause", TELLING)
def test_attempts_for_nothing_stop_a_run_whatever_the_cause(cause: Cause) -> None:
    budgets = replace(PLENTY, **dict.fromkeys(set(BUDGET_OF.values()), 99))
    assert decide_inside([stuck(cause)] * 2, budgets).action is not Action.STOP
    decision = decide_inside([moved(cause), *[stuck(cause)] * 3], budgets)
    assert decision.action is Action.STOP
    assert (
        "3 attempts in a row left no newer checkpoint (recovery.max_no_progress=3)" in decision.why
    )
    assert (
        decide_inside([stuck(cause), stuck(cause), moved(cause), stuck(cause)], budgets).action
        is not Action.STOP
    )


def test_a_step_back_is_no_progress() -> None:
    back = Ended(Cause.LOST, 20, 10, 1.0)
    assert decide_inside([back] * 3, PLENTY).action is Action.STOP


@pytest.mark.parametrize("cause", RETRIED)
def test_hours_that_are_spent_stop_a_run_whatever_the_cause(cause: Cause) -> None:
    assert (
        decide_inside([moved(cause, 60.0), moved(Cause.LOST, 39.9)], PLENTY).action
        is not Action.STOP
    )
    decision = decide_inside([moved(Cause.LOST, 60.0), moved(cause, 40.0)], PLENTY)
    assert decision.action is Action.STOP
    assert "run.max_gpu_hours=100 spent" in decision.why
    assert (
        decide_inside([moved(cause, 1e9)], replace(PLENTY, max_gpu_hours=None)).action
        is not Action.STOP
    )


@pytest.mark.parametrize("cause", BUDGET_OF)
@pytest.mark.parametrize("other", RETRIED)
def test_one_cause_does_not_use_up_anothers_budget(cause: Cause, other: Cause) -> None:
    if BUDGET_OF.get(other) == BUDGET_OF[cause] and "memory" not in BUDGET_OF[cause]:
        return
    if other is cause:
        return
    budgets = replace(PLENTY, **{BUDGET_OF[cause]: 1})
    assert decide_inside([moved(other)] * 1 + [moved(cause)], budgets).action is not Action.STOP


def test_preemptions_have_no_bound_where_none_is_given() -> None:
    budgets = replace(PLENTY, max_preemptions=None, max_gpu_hours=None)
    assert decide_inside([moved(Cause.PREEMPTED)] * 500, budgets).action is Action.REQUEUE


def test_a_divergence_is_final_unless_batches_may_be_skipped() -> None:
    decision = decide_inside([moved(Cause.DIVERGED)], replace(PLENTY, max_divergences=0))
    assert (decision.action, decision.why) == (Action.STOP, "diverged: a restart would not help")


@pytest.mark.parametrize(
    ("cause", "enough_left", "action"),
    [
        (Cause.CRASH, True, Action.RESTART_WITHOUT_NODE),
        (Cause.HANG, True, Action.RESTART_WITHOUT_NODE),
        (Cause.CRASH, False, Action.REQUEUE_EXCLUDING),
        (Cause.NODE_FAILURE, True, Action.RESTART_WITHOUT_NODE),
        (Cause.NODE_FAILURE, False, Action.REQUEUE_EXCLUDING),
        (Cause.TIME_LIMIT, True, Action.REQUEUE_EXCLUDING),
        (Cause.COMPLETED, True, Action.STOP),
    ],
)
def test_a_bad_node_is_left_out(cause: Cause, enough_left: bool, action: Action) -> None:
    cluster = Cluster(frozenset({"n2"}), enough_left)
    decision = decide_inside([replace(moved(cause), node="n2")], PLENTY, cluster)
    assert decision.action is action
    assert decision.nodes == (("n2",) if action is not Action.STOP else ())
    sound = decide_inside([replace(moved(cause), node="n1")], PLENTY, cluster)
    assert sound.nodes == (
        ("n1",) if cause is Cause.NODE_FAILURE and enough_left else ()
    )  # dead, whatever it was


@pytest.mark.parametrize("cause", [Cause.CRASH, Cause.KILLED, Cause.HANG, Cause.LAUNCH_FAILED])
def test_a_bad_node_burns_no_retries_and_its_failures_have_a_budget_of_their_own(
    cause: Cause,
) -> None:
    bad = replace(stuck(cause), node="n2", node_excluded=True)
    assert exhausted([bad] * 3 + [moved(Cause.CRASH)] * 3, PLENTY) is None
    assert exhausted([bad] * 4, PLENTY) == "4 node failures (recovery.max_node_failures=3)"


def test_budgets_are_those_of_the_frozen_configuration() -> None:
    config = make_config(
        "recovery.max_hangs=7", "recovery.max_preemptions=2", "run.max_gpu_hours=5"
    )
    budgets = Budgets.of(config.run, config.recovery, 700)
    assert budgets.steps == 700
    assert (budgets.max_hangs, budgets.max_preemptions, budgets.max_gpu_hours) == (7, 2, 5.0)
    assert budgets.max_divergences == 0
    skipping = make_config("recovery.on_divergence=skip")
    assert Budgets.of(skipping.run, skipping.recovery, 700).max_divergences == 3


def lived(story: list[Ended], budgets: Budgets) -> list[Ended]:
    """The attempts of `story` that there are before the policy stops the run."""
    for number in range(1, len(story) + 1):
        if decide_inside(story[:number], budgets).action is Action.STOP:
            return story[:number]
    return story


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=12), BUDGETS)
def test_a_run_stops_only_where_a_budget_is_spent(story: list[Ended], budgets: Budgets) -> None:
    attempts = lived(story, budgets)
    if (
        decide_inside(attempts, budgets).action is Action.STOP
        and attempts[-1].cause is not Cause.DIVERGED
    ):
        assert exhausted(attempts, budgets) is not None


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=10), BUDGETS, FEW)
def test_more_budget_never_stops_a_run_earlier(
    story: list[Ended], less: Budgets, more: int
) -> None:
    names = [*set(BUDGET_OF.values()), "max_no_progress"]
    raised = {
        name: None if getattr(less, name) is None else getattr(less, name) + more for name in names
    }
    assert len(lived(story, replace(less, **raised, max_gpu_hours=None))) >= len(lived(story, less))


@settings(deadline=None)
@given(st.lists(ANY, min_size=2, max_size=8), BUDGETS)
def test_what_is_counted_never_comes_back(story: list[Ended], budgets: Budgets) -> None:
    """Progress alone may give a run that ran in place another chance."""
    histories = [story[:number] for number in range(1, len(story) + 1)]
    for before, after in pairwise(histories):
        spent = exhausted(before, budgets)
        if spent and "attempts in a row" not in spent:
            assert exhausted(after, budgets)


def test_a_bad_node_excuses_no_lack_of_progress_that_no_other_budget_bounds() -> None:
    stuck = Ended(Cause.TIME_LIMIT, 5, 5, 0.1, node="n1", node_excluded=True)
    assert "no newer checkpoint" in str(exhausted([stuck] * 3, PLENTY))
    assert exhausted([replace(stuck, cause=Cause.CRASH)] * 3, PLENTY) is None
