"""How often to save: Daly's interval, and what is assumed before anything is measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.planning.interval import expected_save_s, interval_s, mtbf_s
from hpc_llm.planning.plan import make_plan
from hpc_llm.planning.render import render
from tests.configs import make_config


def expected_time(interval: float, save: float, mtbf: float, restart: float = 0.0) -> float:
    """Wall time per second of work with exponential failures (Daly's eq. 20).

    The interval makes it least.
    """
    return mtbf * math.exp(restart / mtbf) * (math.exp((interval + save) / mtbf) - 1) / interval


@pytest.mark.parametrize(
    ("save_s", "mtbf", "seconds"),
    [(10.0, 36000.0, 841.9), (300.0, 86400.0, 7000.6), (60.0, 60.0, 49.1), (200.0, 60.0, 200.0)],
)
def test_the_interval_is_dalys(save_s: float, mtbf: float, seconds: float) -> None:
    assert interval_s(save_s, mtbf) == pytest.approx(max(save_s, seconds), rel=0.002)


@settings(deadline=None)
@given(st.floats(0.5, 300), st.floats(20, 5000), st.floats(0.3, 3))
def test_no_other_interval_is_better_by_more_than_a_thousandth(
    save: float, ratio: float, factor: float
) -> None:
    mtbf = save * ratio
    best = interval_s(save, mtbf)
    assert expected_time(best, save, mtbf) <= expected_time(best * factor, save, mtbf) * 1.001


@settings(deadline=None)
@given(st.floats(0.01, 1e4), st.floats(0.01, 1e7))
def test_the_interval_is_never_shorter_than_a_save(save: float, mtbf: float) -> None:
    assert interval_s(save, mtbf) >= save


@pytest.mark.parametrize(("save", "mtbf"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_time_at_all_is_refused(save: float, mtbf: float) -> None:
    with pytest.raises(ValueError, match="longer than 0 s"):
        interval_s(save, mtbf)


def test_a_thousand_nodes_fail_six_and_a_half_times_a_day() -> None:
    assert mtbf_s(1000) == pytest.approx(86400 / 6.5)
    assert expected_save_s(80 * 10**9, 8) == pytest.approx(12.0)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1e7), st.integers(0, 50))
def test_a_failure_shortens_the_time_between_failures_and_quiet_time_lengthens_it(
    nodes: int, trained: float, failures: int
) -> None:
    assert mtbf_s(nodes, trained, failures + 1) < mtbf_s(nodes, trained, failures)
    assert mtbf_s(nodes, trained + 3600, failures) > mtbf_s(nodes, trained, failures)


def test_much_evidence_outweighs_what_was_assumed() -> None:
    assert mtbf_s(16, 1e9, 10**5) == pytest.approx(1e4, rel=0.01)


def test_auto_is_planned_from_the_size_of_a_checkpoint_and_the_number_of_nodes() -> None:
    small = make_plan(make_config("cluster=a100x8", "model=mpt-7b", "checkpoint.every=auto"), None)
    large = make_plan(
        make_config("cluster=a100x440", "model=mpt-7b", "checkpoint.every=auto"), None
    )
    assert small.checkpoint_every_steps is None and large.checkpoint_every_steps is None
    assert large.checkpoint_every_s is not None and small.checkpoint_every_s is not None
    assert large.checkpoint_every_s < small.checkpoint_every_s
    nodes = 55
    num_bytes = large.checkpoint_bytes
    assert large.checkpoint_every_s == pytest.approx(
        interval_s(expected_save_s(num_bytes, nodes), mtbf_s(nodes)), 1e-3
    )
    assert "s (auto)" in render(
        make_config("cluster=a100x440", "model=mpt-7b", "checkpoint.every=auto"), large
    )
