"""The step is mathematics: the same losses at any number of ranks, passes and ZeRO stage."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hpc_llm.model.init import initialise
from hpc_llm.model.transformer import Transformer
from tests.zero.engine_ranks import Case, plain_losses, trained

pytestmark = pytest.mark.slow

STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3)}
MICRO_BATCHES = {
    1: (8, 3, 2),
    2: (4, 2, 1),
}  # by ranks: global batch 8 in 1, 3 (the last one short) and 4 passes
UNEVEN_ON_TWO_RANKS = 3  # 4 rows per rank in passes of 3 and 1

# fp32 sums in another order differ in the last bits: 8 rows × 16 targets give a relative error of
# about sqrt(128) × 2^-24 = 7e-7 per gradient, and 4 steps of Adam with lr 0.01 carry it on; 1e-5 is
# 15 times that. bf16 rounds activations to 8 bits, 2^-9 = 2e-3 relative each, and rounds them
# elsewhere in another split; the weights are rounded alike in the plain bf16 model. A loss is a
# mean over 80 targets, so 2e-3 is far above what is seen (6e-4); the errors reach a gradient norm
# unaveraged and AdamW carries them on (7e-3 is seen). A pass or a rank whose gradient were lost or
# counted twice would move the norm by a tenth or more.
TOLERANCE = {"fp32": (1e-5, 1e-5), "bf16": (2e-3, 1.5e-2)}  # of loss, of gradient norm


@cache
def losses(world_size: int) -> dict[Case, list[list[float]]]:
    """(precision, stage, micro-batch) → [loss, gradient norm] per step, all in one set of
    processes.
    """
    micro = (*MICRO_BATCHES[world_size], *((UNEVEN_ON_TWO_RANKS,) if world_size == 2 else ()))
    return trained(
        world_size,
        [(name, stage, m) for name, stages in STAGES.items() for stage in stages for m in micro],
    )


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("precision", "stage"), [(name, stage) for name, stages in STAGES.items() for stage in stages]
)
def test_ranks_and_passes_give_the_losses_of_one_big_batch(
    precision: str, stage: int, world_size: int
) -> None:
    cases = {
        key: value for key, value in losses(world_size).items() if key[:2] == (precision, stage)
    }
    assert len(cases) == 3 + (world_size == 2)
    plain = plain_losses(precision=precision)
    for key, found in cases.items():
        for column, tolerance in enumerate(TOLERANCE[precision]):
            here = torch.tensor(found)[:, column]
            there = torch.tensor(plain)[:, column]
            torch.testing.assert_close(
                here, there, rtol=tolerance, atol=0, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("world_size", [1, 2])
def test_at_zero_1_in_bf16_gradients_of_passes_and_ranks_are_summed_in_fp32(
    world_size: int,
) -> None:
    """Rows one by one: sums that were rounded to bf16 on the way, as DeepSpeed's are, move the norm
    by 1e-4.
    """
    from tests.zero.engine_worker import GLOBAL_BATCH, SEQ_LEN, global_batch, plan_for

    config, plan = plan_for("bf16", 1, 1, 1)
    model = Transformer(config.model, SEQ_LEN, attention=plan.attention)
    for name, parameter in model.named_parameters():
        initialise(name, parameter, config.model, config.run.seed)
    model.bfloat16()
    tokens, targets = global_batch(0)
    summed = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in model.parameters()]
    for row in range(GLOBAL_BATCH):
        loss = model(tokens[row : row + 1], targets[row : row + 1]) / (targets != -100).sum()
        for total, gradient in zip(
            summed, torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            total += gradient.float()
    norm = torch.nn.utils.get_total_norm(summed).item()
    ((_, found), *_) = trained(world_size, [("bf16", 1, 1)])["bf16", 1, 1]
    assert found == pytest.approx(norm, rel=1e-6)


def test_losses_in_bf16_are_those_in_fp32_but_for_rounding() -> None:
    in_bf16, in_fp32 = (
        torch.tensor(plain_losses(precision=name))[:, 0] for name in ("bf16", "fp32")
    )
    torch.testing.assert_close(in_bf16, in_fp32, rtol=2e-3, atol=0)


def test_a_step_that_divided_by_passes_instead_of_targets_would_be_noticed() -> None:
    """The batch masks targets unevenly: the mean of the rows' means is far from the mean over
    targets.
    """
    from tests.zero.engine_worker import global_batch

    _, targets = global_batch(0)
    counts = (targets != -100).sum(1).float()
    weights = counts / counts.sum()
    assert (weights - 1 / len(weights)).abs().max() > 10 * TOLERANCE["bf16"][0]
