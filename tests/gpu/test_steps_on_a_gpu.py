"""A GPU's steps are those of plain torch on the CPU, at every ZeRO stage and in every way to
compute them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.zero.engine_ranks import Case, plain_losses, trained

COMPILED = ("train.compile=true", "train.attention=flex")
EAGER = ("train.compile=false", "train.attention=sdpa")
DEEPSPEEDS: dict[Case, str] = {  # what the engine says of its optimizer
    ("bf16", 2, 3, *EAGER, "optim=cpu_adam"): "deepspeed.DeepSpeedCPUAdam",
    ("bf16", 1, 3, *EAGER, "optim=fused_adam"): "deepspeed.FusedAdam",
}
CASES: list[Case] = [
    *(("fp32", stage, micro, *EAGER) for stage in (0, 1, 2, 3) for micro in (8, 3)),
    *(("bf16", stage, micro, *EAGER) for stage in (1, 2, 3) for micro in (8, 3)),
    ("bf16", 1, 3, "train.compile=false", "train.attention=folded"),
    ("bf16", 1, 3, *COMPILED),
    ("bf16", 2, 3, *COMPILED, "train.activation_checkpointing=true"),
    ("bf16", 3, 8, "train.compile=true"),
    *DEEPSPEEDS,
]
TOLERANCE = {
    "fp32": (1e-5, 1e-4),
    "bf16": (2e-3, 2e-2),
}  # of loss, of gradient norm: see test_exact_step.py

Trained = Future[dict[Case, list[Any]]]


@pytest.fixture(scope="module")
def steps() -> Iterator[dict[Case, Trained]]:
    """Where the steps of a case will be: a process that fails has run once, and fails its own cases
    alone.

    All cases that compile nothing are in one, each other one in its own: a minute instead of two.
    """
    apart = [case for case in CASES if "train.compile=true" in case]
    groups = [[case for case in CASES if case not in apart], *([case] for case in apart)]
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [(group, pool.submit(trained, 1, group, device="cuda")) for group in groups]
        yield {case: future for group, future in futures for case in group}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_losses_are_those_of_one_big_batch_in_plain_torch(
    case: Case, steps: dict[Case, Trained]
) -> None:
    found = steps[case].result()[case]
    for column, tolerance in enumerate(TOLERANCE[case[0]]):
        here = torch.tensor(found)[:, column]
        there = torch.tensor(plain_losses(precision=case[0]))[:, column]
        torch.testing.assert_close(here, there, rtol=tolerance, atol=0)


def test_deepspeeds_optimizers_are_no_others_in_their_place() -> None:
    """Where an operator is not built, torch's AdamW takes its place, and its losses would be right
    too.
    """
    found = trained(1, list(DEEPSPEEDS), "optimizer", device="cuda")
    assert {case: name for case, (name,) in found.items()} == DEEPSPEEDS
