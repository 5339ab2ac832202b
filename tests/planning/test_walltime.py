"""How much notice a run needs before its time limit, and what that leaves of the limit."""

from __future__ import annotations

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.planning.plan import make_plan
from hpc_llm.planning.render import render
from hpc_llm.planning.walltime import jobs, lead_s, notice_s
from tests.configs import make_config, presets


def test_notice_is_for_three_steps_an_evaluation_two_saves_and_a_minute() -> None:
    assert notice_s(100, 20, 50) == 3 * 100 + 50 + 2 * 20 + 60


@pytest.mark.parametrize(
    ("time_min", "needed_s", "expected_s"),
    [
        (1440, 61, 300),
        (1440, 301, 360),
        (1440, 4161, 4200),
        (4, 61, 120),
        (1, 20, 60),
        (10, 300, 300),
    ],
)
def test_notice_is_whole_minutes_and_five_of_them_where_there_is_time(
    time_min: int, needed_s: float, expected_s: int
) -> None:
    assert lead_s(time_min, needed_s) == expected_s


def test_time_limits_are_shortened_by_the_notice() -> None:
    assert jobs(10 * 3600, 70, 600) == 10
    assert jobs(10 * 3600 + 1, 70, 600) == 11


FITTING = [(model, cluster) for model in presets("model") for cluster in ("a100x8", "h100x64")]
FITTING.remove(("mpt-70b", "a100x8"))


@pytest.mark.parametrize(("model", "cluster"), FITTING)
def test_every_preset_has_time_to_save_before_its_limit(model: str, cluster: str) -> None:
    config = make_config(f"model={model}", f"cluster={cluster}", "train.global_batch=2048")
    plan = make_plan(config, None)
    assert plan.signal_lead_s is not None
    assert 300 <= plan.signal_lead_s >= plan.notice_s


def test_a_limit_that_leaves_no_time_to_train_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"cluster\.time_min=30: .* set cluster\.time_min above 68, or"
    ) as raised:
        make_plan(make_config("model=mpt-30b", "cluster=a100x8", "cluster.time_min=30"), None)
    assert len(raised.value.problems) == 1


def test_a_notice_that_is_given_is_obeyed_and_the_plan_says_what_it_may_need() -> None:
    config = make_config("model=mpt-30b", "cluster=a100x8", "cluster.signal_lead_s=200")
    plan = make_plan(config, None)
    assert plan.signal_lead_s == 200
    assert "notice 200 s before (given); it may need 4,041 s" in render(config, plan)


def test_spare_nodes_are_paid_for() -> None:
    plain, spared = (
        make_plan(
            make_config("model=mpt-7b", "cluster=a100x64", f"cluster.spare_nodes={spare}"), None
        )
        for spare in (0, 2)
    )
    assert plain.wall_hours == spared.wall_hours
    assert plain.gpu_hours is not None
    assert spared.gpu_hours == pytest.approx(plain.gpu_hours * 10 / 8)
