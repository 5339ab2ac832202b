"""In the steady step the host never waits for the GPU: what comes next is queued while it works."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.zero.engine_ranks import Case, trained
from tests.zero.engine_worker import Waits

# below 128 queries FlexAttention takes the kernel for decoding, which no training meets
LENGTH = "train.seq_len=256"
COMPILED = ("train.compile=true", "train.attention=flex", LENGTH)
EAGER = ("train.compile=false", "train.attention=sdpa", LENGTH)
UNWAITED: list[Case] = [
    ("bf16", 1, 8, *EAGER),
    ("bf16", 1, 3, *EAGER),
    ("bf16", 2, 3, *EAGER),
    ("fp32", 1, 3, *EAGER),
    ("bf16", 1, 3, *COMPILED),
    ("bf16", 1, 3, *COMPILED, "data.packing=best_fit"),
]


@pytest.fixture(scope="module")
def waits() -> dict[Case, list[Any]]:
    return trained(1, UNWAITED, "syncs", device="cuda")


@pytest.mark.parametrize("case", UNWAITED, ids=lambda case: " ".join(map(str, case)))
def test_in_the_steady_step_the_host_never_waits_for_the_device(
    case: Case, waits: dict[Case, list[Any]]
) -> None:
    assert waits[case][2:] == ["", ""]


def test_a_wait_would_be_seen() -> None:
    number = torch.ones((), device="cuda")
    with Waits() as waits:
        number.item()
    assert "number.item()" in waits.first
