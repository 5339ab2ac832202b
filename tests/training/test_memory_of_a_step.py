"""The plan's memory is what torch's allocator gives out, by precision, ZeRO stage, passes and
checkpointing.

On one rank: between several, Gloo copies what it reduces, where NCCL does not.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.zero.engine_ranks import Case, trained

pytestmark = pytest.mark.slow

# Large enough that weights, gradients and states outweigh what the plan leaves out.
SHAPE = ("model.d_model=256", "model.n_heads=4", "model.n_layers=4", "model.vocab_size=4096")
STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3)}
CASES = [
    (precision, stage, micro, *SHAPE, f"train.activation_checkpointing={checkpointing}")
    for precision, stages in STAGES.items()
    for stage in stages
    for micro in (4, 1)
    for checkpointing in ("false", "true")
]
# In buckets smaller than the model: what the last of them holds in the step shows.
WIDE = (
    "model.d_model=384",
    "model.n_heads=6",
    "model.n_layers=8",
    "model.vocab_size=16384",
    "data.vocab_size=16384",
)
CASES += [(precision, stage, 4, *WIDE) for precision in ("bf16", "fp32") for stage in (2, 3)]
# The worst seen is 13 % off, at ZeRO 3 in fp32, where less is taken than planned, the others 8 %; a
# processor with products of bf16 of its own makes fewer copies in fp32.
TOLERANCE = 0.15


@cache
def alive() -> dict[Case, list[int]]:
    """Bytes by case."""
    return trained(1, CASES, "alive")


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, (*case[:3], case[-1]))))
def test_planned_tensors_are_those_of_a_run(case: Case) -> None:
    from tests.zero.engine_worker import plan_for

    precision, stage, micro, *words = case
    _, plan = plan_for(precision, stage, micro, 1, *words)
    (found,) = alive()[case]
    assert plan.memory.tensors == pytest.approx(found, rel=TOLERANCE)
