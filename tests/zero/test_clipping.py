"""A step's launch waits for no device, and one whose gradient is no number leaves the weights
alone.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

from tests.zero.engine_ranks import Case, plain_losses, trained

pytestmark = pytest.mark.slow

STAGES = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
PASSES = 2
CASES: list[Case] = [(precision, stage, 4, "optim=torch_adam") for precision, stage in STAGES]
DEEPSPEEDS: list[Case] = [(precision, stage, 4, "optim=fused_adam") for precision, stage in STAGES]


@cache
def found(what: str) -> dict[Case, list[Any]]:
    return trained(1, CASES if what == "reads" else [*CASES, *DEEPSPEEDS], what)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_is_launched_without_a_look_at_what_the_device_computes(case: Case) -> None:
    """Only the targets of its passes are counted, where the loader has put them: in the host's
    memory.

    The one tensor made of numbers (targets, flags) is copied without waiting; at ZeRO 3 DeepSpeed
    makes more.
    """
    _, stage, *_ = case
    for reads, made, waits in found("reads")[case][1:]:  # ZeRO 3 looks at the first
        assert reads == PASSES
        assert waits == 0 or stage == 3
        assert made == 1 or stage == 3


# DeepSpeed's own optimizers look at norms before they step; how often, this says, so that it is
# known when it changes.
LOOKS: dict[Case, int] = {
    ("bf16", 1, 4, "optim=fused_adam"): 2,
    ("bf16", 2, 4, "optim=fused_adam"): 4,
    ("bf16", 3, 4, "optim=fused_adam"): 1,
    ("fp32", 0, 4, "optim=fused_adam"): 2,
    ("bf16", 1, 4, "optim=fused_lion"): 2,
    ("bf16", 1, 4, "optim=muon", "optim.lr=0.01", "optim.warmup=1steps"): 1,
    ("bf16", 2, 4, "optim=muon", "optim.lr=0.01", "optim.warmup=1steps"): 2,
}


@cache
def looks() -> dict[Case, list[Any]]:
    return trained(1, list(LOOKS), "reads")


@pytest.mark.parametrize("case", LOOKS, ids=str)
def test_deepspeeds_optimizers_look_at_what_the_device_computes(case: Case) -> None:
    assert {reads - PASSES for reads, _, _ in looks()[case][1:]} == {LOOKS[case]}


@pytest.mark.parametrize("case", [*CASES, *DEEPSPEEDS], ids=str)
def test_a_gradient_that_is_no_number_changes_nothing_and_is_told(case: Case) -> None:
    first, poisoned, *rest = found("poison")[case]
    assert not math.isfinite(poisoned[1])
    assert [changed for _, _, changed in (first, poisoned, *rest)] == [True, False, True, True]
    assert all(math.isfinite(loss) and math.isfinite(norm) for loss, norm, _ in (first, *rest))


def test_the_clipped_step_is_that_of_plain_torch() -> None:
    """With an epsilon as large as the gradients, or AdamW would hardly mind their scale."""
    words = ("optim.eps=0.01", "optim.grad_clip=0.05", "optim=torch_adam")
    cases: list[Case] = [("fp32", stage, 4, *words) for stage in range(4)]
    losses = trained(1, cases)
    plain = plain_losses(*words)
    assert plain[0][1] > 10 * 0.05
    assert plain != plain_losses(*words[::2])  # it matters
    for case in cases:
        torch.testing.assert_close(
            torch.tensor(losses[case]), torch.tensor(plain), rtol=1e-5, atol=0
        )
