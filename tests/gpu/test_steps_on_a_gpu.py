"""A GPU's steps are those of plain torch on the CPU, at every ZeRO stage and in every way to compute them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from engine_ranks import Case, plain_losses, trained

COMPILED = ("train.compile=true", "train.attention=flex")
EAGER = ("train.compile=false", "train.attention=sdpa")
CASES: list[Case] = [
    *(("fp32", stage, micro, *EAGER) for stage in (0, 1, 2, 3) for micro in (8, 3)),
    *(("bf16", stage, micro, *EAGER) for stage in (1, 2, 3) for micro in (8, 3)),
    ("bf16", 1, 3, "train.compile=false", "train.attention=folded"),
    ("bf16", 1, 3, *COMPILED),
    ("bf16", 2, 3, *COMPILED, "train.activation_checkpointing=true"),
    ("bf16", 3, 8, "train.compile=true"),
    ("bf16", 2, 3, *EAGER, "optim=cpu_adam"),
    ("bf16", 1, 3, *EAGER, "optim=fused_adam"),
]
TOLERANCE = {"fp32": (1e-5, 1e-4), "bf16": (2e-3, 2e-2)}  # of loss, of gradient norm: see test_exact_step.py


@cache
def losses() -> dict[Case, list[Any]]:
    """All cases that compile nothing in one process, each other one in its own: a minute instead of two."""
    apart = [case for case in CASES if "train.compile=true" in case]
    groups = [[case for case in CASES if case not in apart], *([case] for case in apart)]
    with ThreadPoolExecutor(len(groups)) as pool:
        found = pool.map(lambda group: trained(1, group, device="cuda"), groups)
    return {case: steps for group in found for case, steps in group.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_losses_are_those_of_one_big_batch_in_plain_torch(case: Case) -> None:
    for column, tolerance in enumerate(TOLERANCE[case[0]]):
        here = torch.tensor(losses()[case])[:, column]
        there = torch.tensor(plain_losses(precision=case[0]))[:, column]
        torch.testing.assert_close(here, there, rtol=tolerance, atol=0)
