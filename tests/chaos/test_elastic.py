"""A run goes on with other ranks or another ZeRO stage: the same samples, the same mathematics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.local_runs import STEPS, run

pytestmark = pytest.mark.slow

Shape = tuple[int, int]  # ranks, ZeRO stage


# Large enough that a step count or a group's weight decay that did not come along would show.
OPTIM = ("optim.lr=0.02", "optim.weight_decay=2")


def words(precision: str, shape: Shape) -> tuple[str, ...]:
    ranks, stage = shape
    return (
        f"train.precision={precision}",
        f"cluster.gpus_per_node={ranks}",
        f"train.zero_stage={stage}",
        *OPTIM,
    )


@pytest.mark.parametrize(
    ("precision", "before", "after"),
    [
        ("bf16", (2, 1), (1, 1)),
        ("bf16", (1, 1), (2, 2)),
        ("bf16", (2, 3), (1, 3)),
        ("fp32", (1, 2), (2, 1)),
        ("fp32", (2, 0), (1, 0)),
    ],
)
def test_a_run_goes_on_with_other_ranks(
    tmp_path: Path, precision: str, before: Shape, after: Shape
) -> None:
    plain = run(tmp_path, "plain", *words(precision, before))
    kill = {"attempt": 1, "rank": 0, "kind": "kill", "step": 5}
    run(tmp_path, "moved", *words(precision, before), "recovery.max_crashes=0", faults=[kill])
    moved = run(tmp_path, "moved", *words(precision, after))
    assert moved.status == 0, moved.output
    assert moved.named("resumed")[-1]["step"] == 4
    assert sorted(moved.losses) == list(range(1, STEPS + 1))
    assert moved.losses == pytest.approx(plain.losses, rel=1e-4)
    assert not list(moved.layout.checkpoints.glob("*.reshaped"))


def test_a_checkpoint_of_stage_3_is_not_one_for_others_which_is_said_before_anything_is_tried(
    tmp_path: Path,
) -> None:
    kill = {"attempt": 1, "rank": 0, "kind": "kill", "step": 5}
    before = run(
        tmp_path, "moved", *words("bf16", (1, 3)), "recovery.max_crashes=0", faults=[kill]
    ).events
    refused = run(tmp_path, "moved", *words("bf16", (1, 1)))
    assert refused.status == 2
    assert (
        "train.zero_stage=1: the run's checkpoint of step 4 can be loaded at stage 3 alone"
        in refused.output
    )
    assert refused.events == before
    moved = run(tmp_path, "moved", "train.precision=bf16", *OPTIM)  # auto
    assert (moved.status, moved.named("resumed")[-1]["step"]) == (0, 4), moved.output
