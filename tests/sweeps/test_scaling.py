"""A power law is found again, its next value lies in the interval, and what is none is refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.scaling import fit

SIZES = [1e6, 3e6, 1e7, 3e7, 1e8]


def law(a: float, b: float, c: float, size: float) -> float:
    return float(c + a * (size / 1e7) ** -b)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 5), st.floats(0.05, 0.8), st.floats(0.1, 3))
def test_an_exact_law_is_found_again(a: float, b: float, c: float) -> None:
    found = fit(SIZES, [law(a, b, c, size) for size in SIZES], 1e9)
    assert found.c is not None
    assert found.b.value == pytest.approx(b, rel=0.02)
    assert found.c.value == pytest.approx(c, rel=0.05, abs=0.02)
    assert found.next_loss.value == pytest.approx(law(a, b, c, 1e9), rel=2e-3)


def test_three_sizes_give_a_law_without_an_offset() -> None:
    found = fit(SIZES[:3], [law(3, 0.1, 0, size) for size in SIZES[:3]])
    assert found.c is None
    assert found.b.value == pytest.approx(0.1)
    assert found.next_size == pytest.approx(1e7**2 / 3e6)
    assert found.next_loss.value == pytest.approx(law(3, 0.1, 0, found.next_size))


def test_of_noisy_ladders_the_stated_part_holds_the_next_loss() -> None:
    """95 % is stated; linearised intervals of five points come close, far from certain and far from
    chance.
    """
    noise = random.Random(3)
    inside = 0
    for _ in range(60):
        losses = [law(2, 0.3, 1.5, size) * noise.gauss(1, 0.003) for size in SIZES]
        found = fit(SIZES, losses).next_loss
        inside += found.low <= law(2, 0.3, 1.5, 1e8**2 / 3e7) * noise.gauss(1, 0.003) <= found.high
    assert inside >= 50


def test_fewer_than_three_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="needs 3 sizes, these are 2"):
        fit([1e6, 1e6, 2e6], [3.0, 3.1, 2.9])


def test_a_loss_that_does_not_fall_predicts_nothing() -> None:
    with pytest.raises(InputError, match="does not fall"):
        fit(SIZES, [3.0, 3.1, 3.2, 3.3, 3.4])
