from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.preparation.split import DUPLICATE, HELDOUT, TRAIN, budgets, decide, sample


def digests(numbers: list[int]) -> np.ndarray:
    """The digests of texts, one for each number."""
    joined = b"".join(hashlib.sha256(str(number).encode()).digest()[:16] for number in numbers)
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


def decided(numbers: list[int], fraction: float = 0.2, deduplicate: bool = True) -> list[int]:
    return decide(digests(numbers), fraction, deduplicate).tolist()


@given(st.permutations(range(60)))
def test_what_is_held_out_does_not_depend_on_the_order_of_files(order: list[int]) -> None:
    assert dict(zip(order, decided(order), strict=True)) == dict(
        enumerate(decided(list(range(60))))
    )


@given(numbers=st.lists(st.integers(0, 12), min_size=2, max_size=60), deduplicate=st.booleans())
def test_equal_texts_are_on_one_side_and_the_first_is_kept(
    numbers: list[int], deduplicate: bool
) -> None:
    try:
        verdicts = decided(numbers, 0.3, deduplicate)
    except InputError:
        assert all(
            number in numbers[:1] or digests([number])[0, 0] < 0.3 * 256 for number in numbers
        )
        return
    sides: dict[int, int] = {}
    for number, verdict in zip(numbers, verdicts, strict=True):
        if number in sides and deduplicate:
            assert verdict == DUPLICATE
        else:
            assert verdict == sides.setdefault(number, verdict)
            assert verdict in (TRAIN, HELDOUT)


def test_texts_whose_digests_begin_alike_are_not_the_same() -> None:
    alike = digests([1, 2, 3]).copy()
    alike[:, :8] = alike[0, :8]
    assert (decide(np.vstack([alike, digests([7])]), 1e-9, True) != DUPLICATE).all()


def test_about_the_asked_fraction_is_held_out_and_more_holds_out_the_same_and_more() -> None:
    small, large = (
        np.array(decided(list(range(5000)), fraction)) == HELDOUT for fraction in (0.02, 0.1)
    )
    assert 60 < small.sum() < 140
    assert 400 < large.sum() < 600
    assert not (small & ~large).any()


def test_few_documents_still_hold_one_out() -> None:
    lowest = min(range(3), key=lambda number: digests([number]).tobytes())
    assert [
        number for number, verdict in enumerate(decided([0, 1, 2], 0.0001)) if verdict == HELDOUT
    ] == [lowest]


@pytest.mark.parametrize("count", [1, 2])
def test_documents_of_one_text_cannot_be_split(count: int) -> None:
    with pytest.raises(
        InputError, match=r"data\.heldout_fraction=0\.02: leaves nothing to train on of 1 distinct"
    ):
        decided([0] * count, 0.02)


@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1000), min_size=1),
    budget=st.integers(0, 10_000),
)
def test_a_budget_is_spent_as_evenly_as_the_sources_allow(
    sizes: dict[str, int], budget: int
) -> None:
    dealt = budgets(sizes, budget)
    assert all(0 <= dealt[name] <= sizes[name] for name in sizes)
    assert min(budget, sum(sizes.values())) - sum(dealt.values()) < len(sizes)
    unfilled = [dealt[name] for name in sizes if dealt[name] < sizes[name]]
    assert not unfilled or min(unfilled) + 1 >= max(dealt.values())


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(1, 3000))
def test_a_sample_keeps_to_its_budget_and_leaves_no_more_than_one_stretch_of_it(
    sizes: list[int], budget: int
) -> None:
    keys = np.frombuffer(digests(list(range(len(sizes)))).tobytes(), "<u8")[::2]
    taken = np.array(sizes)[sample(keys, np.array(sizes), budget)].sum()
    assert taken <= max(budget, max(sizes))
    assert taken > min(budget, sum(sizes)) - max(sizes)


def test_a_sample_does_not_depend_on_the_order_of_files() -> None:
    sizes = np.arange(1, 101)
    keys = np.frombuffer(digests(list(range(100))).tobytes(), "<u8")[::2]
    backward = sample(keys[::-1], sizes[::-1], 1000)
    assert sample(keys, sizes, 1000).tolist() == (99 - backward).tolist()
