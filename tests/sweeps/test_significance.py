"""Welch's test against published tables, and what must hold for any numbers."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.sweeps.significance import holm, t_quantile, two_sided_p, welch

samples = st.lists(st.floats(1, 10), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (12.7062, 1, 0.05),
        (4.30265, 2, 0.05),
        (2.22814, 10, 0.05),
        (3.16927, 10, 0.01),
        (1.95996, 1e8, 0.05),
    ],
)
def test_students_t_has_the_tables_values(t: float, freedom: float, p: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(p, rel=1e-4)
    assert t_quantile(1 - p, freedom) == pytest.approx(t, rel=1e-4)


@given(st.floats(0, 1e4))
def test_with_one_degree_of_freedom_it_is_cauchys(t: float) -> None:
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)


@given(st.floats(0, 1e4))
def test_with_two_it_has_a_closed_form(t: float) -> None:
    assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)


def test_welch_with_equal_numbers_and_variances_is_students_test() -> None:
    first = [1.0, 2.0, 3.0, 4.0]
    second = [3.5, 4.5, 5.5, 6.5]
    t = 2.5 / math.sqrt(2 * statistics.variance(first) / 4)
    assert welch(first, second) == pytest.approx(two_sided_p(t, 6))


@given(samples, samples)
def test_a_p_is_one_both_ways_round(first: list[float], second: list[float]) -> None:
    there = welch(first, second)
    back = welch(second, first)
    assert there is not None
    assert 0 <= there <= 1
    assert there == pytest.approx(back)


def test_one_seed_says_nothing_of_chance() -> None:
    assert welch([1.0], [2.0, 2.1, 2.2]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0
    assert welch([1.0, 1.0], [1.0, 1.0]) == 1


def test_holm_multiplies_by_how_many_are_left() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=9))
def test_corrected_ps_keep_their_order_and_never_shrink(ps: list[float]) -> None:
    corrected = holm(ps)
    assert all(p <= new <= 1 for p, new in zip(ps, corrected, strict=True))
    assert [corrected[place] for place in sorted(range(len(ps)), key=ps.__getitem__)] == sorted(
        corrected
    )
