"""Batch arithmetic as properties over any number of ranks and any micro-batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.planning.batch import (
    accumulation,
    microbatch_candidates,
    most_sequences,
    padded_rows,
    pass_rows,
    rows_per_rank,
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int, int]:
    world_size = draw(st.integers(1, 48))
    return draw(st.integers(world_size, 400)), world_size, draw(st.integers(1, 20))


@given(batches())
def test_every_row_is_computed_exactly_once_and_in_order(batch: tuple[int, int, int]) -> None:
    global_batch, world_size, micro_batch = batch
    passes = accumulation(global_batch, world_size, micro_batch)
    ranges = [
        pass_rows(*batch, rank, index) for rank in range(world_size) for index in range(passes)
    ]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(
        range(global_batch)
    )


@given(batches())
def test_no_pass_is_larger_than_the_micro_batch_and_no_rank_is_idle(
    batch: tuple[int, int, int],
) -> None:
    global_batch, world_size, micro_batch = batch
    passes = accumulation(*batch)
    totals = []
    for rank in range(world_size):
        sizes = [
            stop - start
            for start, stop in (pass_rows(*batch, rank, index) for index in range(passes))
        ]
        assert all(0 <= size <= micro_batch for size in sizes)
        assert sizes == sorted(sizes, reverse=True)
        totals.append(sum(sizes))
    assert min(totals) >= 1
    assert max(totals) - min(totals) <= 1
    assert max(totals) == rows_per_rank(global_batch, world_size)


@given(batches())
def test_padding_is_what_the_passes_compute_beyond_the_batch(batch: tuple[int, int, int]) -> None:
    global_batch, world_size, micro_batch = batch
    assert (
        padded_rows(*batch) == accumulation(*batch) * micro_batch * world_size - global_batch >= 0
    )


@given(st.integers(1, 300), st.integers(1, 32))
def test_candidates_are_worth_trying(rows: int, cap: int) -> None:
    candidates = microbatch_candidates(rows, cap)
    assert len(set(candidates)) == len(candidates)
    assert 1 in candidates
    assert all(1 <= size <= min(rows, cap) for size in candidates)
    # A smaller size with as many passes would only save padding, so none exists among all sizes.
    assert all(-(-rows // (size - 1)) > -(-rows // size) for size in candidates if size > 1)


@pytest.mark.parametrize(
    ("rows", "first"),
    [(16, 16), (128, 16), (7, 7), (17, 9), (20, 10), (23, 12), (24, 12), (1, 1), (25, 13)],
)
def test_the_best_candidate_is_large_and_divides_where_it_can(rows: int, first: int) -> None:
    assert microbatch_candidates(rows, 16)[0] == first


@pytest.mark.parametrize(
    ("seq_len", "sequences"), [(128, 512), (2048, 32), (4096, 16), (65536, 16)]
)
def test_a_pass_is_worth_65_thousand_tokens_and_at_least_16_sequences(
    seq_len: int, sequences: int
) -> None:
    assert most_sequences(seq_len) == sequences


def test_a_rank_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        accumulation(7, 8, 1)
