"""Gradients are reduced while backward goes on, at ZeRO 1 in bf16 the last one of a step, to the same sums."""

from __future__ import annotations

from functools import cache

import pytest
from engine_ranks import Case, trained

pytestmark = pytest.mark.slow

MUON = ("optim=muon", "optim.lr=0.01", "optim.warmup=1steps")
PARAMETERS = 2 * 6 + 2  # two blocks, the embedding, the last norm
CASES: list[Case] = [("bf16", 1, 4), ("bf16", 1, 2), ("bf16", 1, 2, "model.tied=false"), ("bf16", 1, 2, *MUON)]
CASES += [("fp32", 1, 4), ("bf16", 2, 4), ("fp32", 2, 4), ("bf16", 3, 4), ("fp32", 3, 4)]  # DeepSpeed's own buckets


@cache
def losses(what: str) -> dict[Case, list[list[float]]]:
    return trained(2, CASES, what)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_buckets_give_the_losses_and_norms_of_one_reduction_at_the_end(case: Case) -> None:
    """To the bit: two numbers have one sum."""
    assert [step[:2] for step in losses("buckets")[case]] == losses("losses")[case]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_buckets_begin_as_their_gradients_are_there(case: Case) -> None:
    for *_, (parameters, begun) in losses("buckets")[case]:
        assert parameters == PARAMETERS + ("model.tied=false" in case) and len(begun) > 4
        assert 0 < begun[0] < 2 / 3 * parameters  # while some of backward is to come
        assert begun == sorted(begun) and len({*begun}) > 2
