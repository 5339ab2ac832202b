from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.data.split import heldout_digests, sample_bytes


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


@given(st.permutations(digests(60)))
def test_what_is_held_out_does_not_depend_on_the_order_of_files(order: list[bytes]) -> None:
    assert heldout_digests(order, 0.2) == heldout_digests(digests(60), 0.2)


def test_about_the_asked_fraction_is_held_out_and_more_holds_out_the_same_and_more() -> None:
    small, large = heldout_digests(digests(5000), 0.02), heldout_digests(digests(5000), 0.1)
    assert 60 < len(small) < 140
    assert 400 < len(large) < 600
    assert small < large


def test_few_documents_still_hold_one_out() -> None:
    assert heldout_digests(digests(3), 0.0001) == {min(digests(3))}


@pytest.mark.parametrize("count", [1, 2])
def test_documents_of_one_text_cannot_be_split(count: int) -> None:
    with pytest.raises(InputError, match=r"data\.heldout_fraction=0\.02: leaves nothing to train on of 1 distinct"):
        heldout_digests(digests(1) * count, 0.02)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50), st.integers(1, 100_000))
def test_sample_fills_its_budget_where_the_corpus_can(sizes: list[int], budget: int) -> None:
    sample = sample_bytes(digests(len(sizes)), sizes, budget)
    assert sum(sample.values()) == min(budget, sum(sizes))
    assert all(0 < taken <= sizes[index] for index, taken in sample.items())


def test_one_huge_document_does_not_make_the_sample() -> None:
    sizes = [10_000_000] + [10_000] * 400
    assert sample_bytes(digests(401), sizes, 1_000_000).get(0, 0) <= 1_000_000 // 16


def test_sample_does_not_depend_on_the_order_of_files() -> None:
    sizes = list(range(1, 101))
    forward = sample_bytes(digests(100), sizes, 1000)
    backward = sample_bytes(digests(100)[::-1], sizes[::-1], 1000)
    assert forward == {99 - index: taken for index, taken in backward.items()}
