"""Every global batch holds the sources in their exact proportions, without counting up to it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.planning.shares import MOST_CYCLE, Shares, largest_remainders, least_weight

PERMILLE = (330, 299, 100, 85, 52, 33, 33, 29, 25, 14)
MPT_7B = [Fraction(part, 1000) for part in PERMILLE]
BATCHES = st.sampled_from([1, 2, 3, 7, 16, 64, 440, 1024])
PERCENT = st.lists(st.integers(1, 100), min_size=1, max_size=12).map(
    lambda parts: [Fraction(p) for p in parts]
)
ANY = st.lists(st.integers(1, 10**9), min_size=1, max_size=12).map(
    lambda parts: [Fraction(p) for p in parts]
)


def errors(shares: Shares, number: int) -> list[Fraction]:
    """How far each count is from weight × samples after `number` batches."""
    samples = number * shares.batch
    return [
        abs(count - weight * samples)
        for count, weight in zip(shares.before(number), shares.weights, strict=True)
    ]


def whole_in_a_cycle(shares: Shares) -> bool:
    return all((weight * shares.batch * shares.cycle).denominator == 1 for weight in shares.weights)


@given(weights=st.one_of(PERCENT, ANY), batch=BATCHES, start=st.integers(0, 10**12), data=st.data())
@settings(max_examples=150, deadline=None)
def test_counts_are_exact_after_every_batch_and_never_fall(
    weights: list[Fraction], batch: int, start: int, data: st.DataObject
) -> None:
    if min(weights) / sum(weights) < least_weight(batch):
        with pytest.raises(ValueError, match="a weight below"):
            Shares(weights, batch)
        return
    shares = Shares(weights, batch)
    bound = 1 if shares.cycle == 1 or whole_in_a_cycle(shares) else 2
    before = shares.before(start)
    for number in range(start + 1, start + data.draw(st.integers(1, 60))):
        counts = shares.before(number)
        assert sum(counts) == number * batch
        assert all(more >= less for more, less in zip(counts, before, strict=True))
        assert max(errors(shares, number)) < bound
        before = counts


@given(batch=st.integers(1, 2048), start=st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_the_published_mixture_is_within_one_sample_at_any_batch_size(
    batch: int, start: int
) -> None:
    shares = Shares(MPT_7B, batch)
    assert all(max(errors(shares, number)) < 1 for number in range(start, start + 20))


def test_a_source_of_every_batch_needs_no_cycle() -> None:
    assert Shares([Fraction(1), Fraction(2)], 16).cycle == 1
    assert (
        Shares(MPT_7B, 16).cycle == 125
    )  # 125 batches of 16 are two thousand samples, whole numbers of all ten


def test_a_source_without_weight_gets_nothing() -> None:
    shares = Shares([Fraction(0), Fraction(1)], 5)
    assert shares.before(10**6) == (0, 5 * 10**6)


@pytest.mark.parametrize("weights", [[], [Fraction(0)], [Fraction(-1), Fraction(2)]])
def test_weights_of_nothing_are_refused(weights: list[Fraction]) -> None:
    with pytest.raises(ValueError, match=r"weights|empty"):
        Shares(weights, 4)


def test_the_rarest_source_appears_once_in_the_longest_cycle() -> None:
    rare = Shares([least_weight(4), 1 - least_weight(4)], 4)
    assert rare.cycle == MOST_CYCLE
    assert rare.before(MOST_CYCLE)[0] == 1


def test_remainders_go_to_the_largest() -> None:
    assert largest_remainders([3, 2, 1], 10) == [5, 3, 2]
