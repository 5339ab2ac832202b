"""Gradients are reduced while backward goes on, at ZeRO 1 in bf16 the last one of a step, to the
same sums.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch

from hpc_llm.zero.gradient_sums import Sums
from tests.zero.engine_ranks import Case, trained

pytestmark = pytest.mark.slow

MUON = ("optim=muon", "optim.lr=0.01", "optim.warmup=1steps")
PARAMETERS = 2 * 6 + 2  # two blocks, the embedding, the last norm
CASES: list[Case] = [
    ("bf16", 1, 4),
    ("bf16", 1, 2),
    ("bf16", 1, 2, "model.tied=false"),
    ("bf16", 1, 2, *MUON),
]
CASES += [
    ("fp32", 1, 4),
    ("bf16", 2, 4),
    ("fp32", 2, 4),
    ("bf16", 3, 4),
    ("fp32", 3, 4),
]  # DeepSpeed's own buckets
SUMMED = [
    case for case in CASES if case[:2] == ("bf16", 1)
]  # where the sums are not DeepSpeed's own


@cache
def losses(what: str) -> dict[Case, list[list[float]]]:
    return trained(2, SUMMED if what == "theirs" else CASES, what)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_buckets_give_the_losses_and_norms_of_one_reduction_at_the_end(case: Case) -> None:
    """To the bit: two numbers have one sum."""
    assert [step[:2] for step in losses("buckets")[case]] == losses("losses")[case]


@pytest.mark.parametrize("case", SUMMED, ids=lambda case: " ".join(map(str, case)))
def test_gradients_have_the_sums_that_deepspeed_would_make(case: Case) -> None:
    assert losses("theirs")[case] == losses("losses")[case]


def test_a_parameter_without_a_gradient_keeps_no_sum_of_an_earlier_step() -> None:
    parameters = [torch.zeros(2, 3, dtype=torch.bfloat16) for _ in range(2)]
    optimizer = SimpleNamespace(
        fp32_groups_gradients=[[torch.zeros(6), torch.zeros(6)]],
        fp32_groups_has_gradients=[[False, False]],
    )
    sums = Sums(optimizer)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.ones_like(parameter)
        optimizer._update_hp_grad(parameter, 0, number, False)
    optimizer.clear_hp_grads()
    for _ in range(2):
        optimizer._update_hp_grad(parameters[1], 0, 1, False)
    sums.complete()
    assert [total.tolist() for total in optimizer.fp32_groups_gradients[0]] == [
        [0.0] * 6,
        [2.0] * 6,
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_buckets_begin_as_their_gradients_are_there(case: Case) -> None:
    for *_, (parameters, begun) in losses("buckets")[case]:
        assert parameters == PARAMETERS + ("model.tied=false" in case) and len(begun) > 4
        assert 0 < begun[0] < 2 / 3 * parameters  # while some of backward is to come
        assert begun == sorted(begun) and len({*begun}) > 2
