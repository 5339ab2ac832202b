"""Whatever kills a run or harms its checkpoints: it goes on, and ends bit for bit where an
undisturbed one does.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.checkpoint import manifest
from tests.chaos.local_runs import STEPS, Finished, damage, run

pytestmark = pytest.mark.slow

SHAPES = [("bf16", stage) for stage in (1, 2, 3)] + [("fp32", stage) for stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all runs of this file: they share data and code."""
    return tmp_path_factory.mktemp("runs")


def assert_same(hurt: Finished, plain: Finished) -> None:
    assert hurt.losses == plain.losses
    assert sorted(hurt.losses) == list(range(1, STEPS + 1))
    assert hurt.final_state == plain.final_state


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("precision", "stage"), SHAPES)
def test_a_run_that_is_killed_filled_up_and_damaged_ends_as_if_nothing_had_been(
    root: Path, precision: str, stage: int, ranks: int
) -> None:
    name = f"{precision}-zero{stage}-{ranks}"
    words = (
        f"train.precision={precision}",
        f"train.zero_stage={stage}",
        f"cluster.gpus_per_node={ranks}",
    )
    draw = random.Random(name)
    writer = ranks - 1 if stage else 0  # at stage 0 all states are rank 0's
    plain = run(root, f"{name}-plain", *words)
    assert plain.status == 0, plain.output

    faults: list[dict[str, Any]] = [
        {"attempt": 1, "rank": draw.randrange(ranks), "kind": "kill", "step": draw.randrange(4, 7)},
        {"attempt": 2, "rank": 0, "kind": "kill-save", "event": draw.randrange(1, 7)},
        {"attempt": 3, "rank": writer, "kind": "full", "after": draw.randrange(1, 3000)},
    ]
    hurt = run(root, name, *words, faults=faults)
    assert hurt.status == 1, hurt.output
    assert [end["cause"] for end in hurt.named("ended")] == ["killed", "killed", "storage-full"], (
        hurt.output
    )
    assert hurt.named("save-failed")[0]["why"] == f"rank {writer}: No space left on device"

    newest = manifest.newest_step(hurt.layout.checkpoints)
    damage(hurt, newest, "truncate" if stage % 2 else "flip")
    hurt = run(root, name, *words)
    assert hurt.status == 0, hurt.output
    rejected = hurt.named("checkpoint-rejected")
    assert [item["step"] for item in rejected] == [newest]
    assert ("bytes" if stage % 2 else "SHA-256") in rejected[0]["why"]
    assert f"checkpoint of step {newest} is not valid" in hurt.output
    assert hurt.named("resumed")[-1]["step"] < newest
    assert_same(hurt, plain)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_killed_at_every_single_touch_of_a_checkpoint_file_in_turn_ends_the_same(
    root: Path, rank: int
) -> None:
    words = (
        "train.zero_stage=2",
        "cluster.gpus_per_node=2",
        "recovery.max_crashes=99",
        "recovery.max_no_progress=99",
    )
    plain = run(root, f"touch-{rank}-plain", *words)
    faults = [
        {"attempt": number, "rank": rank, "kind": "kill-save", "event": number}
        for number in range(1, 99)
    ]
    hurt = run(root, f"touch-{rank}", *words, faults=faults)
    assert hurt.status == 0, hurt.output
    kills = [end for end in hurt.named("ended") if end["cause"] == "killed"]
    assert len(kills) >= (10 if rank == 0 else 2), hurt.output
    assert all(end["first_failed"] == rank for end in kills)
    assert_same(hurt, plain)


def test_a_run_whose_checkpoints_are_all_damaged_stops_and_says_so(root: Path) -> None:
    faults = [{"attempt": 1, "rank": 0, "kind": "kill", "step": 5}]
    hurt = run(root, "lost", "recovery.max_crashes=0", faults=faults)
    for step in manifest.steps(hurt.layout.checkpoints):
        damage(hurt, step, "flip")
    lost = run(root, "lost")
    assert lost.status == 1
    assert lost.named("ended")[-1]["cause"] == "checkpoint-unreadable"
    assert "no valid checkpoint" in lost.output
    assert "step 4 was saved" in lost.output


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(root: Path) -> None:
    faults = [{"attempt": 1, "rank": 0, "kind": "nan", "step": 5}]
    diverged = run(root, "nan", faults=faults)
    assert diverged.status == 1
    assert diverged.named("ended")[-1]["cause"] == "diverged"
    assert manifest.steps(diverged.layout.checkpoints)[-1] == 4
    assert "step 6: loss nan" in diverged.output
    told = json.loads(diverged.layout.divergence(1).read_text())
    assert (told["step"], told["data_step"], told["loss"]) == (6, 5, "nan")
    assert len(told["samples"]) == 4  # the global batch


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_that_is_no_number_is_traced_to_its_layer(root: Path, stage: int) -> None:
    """The loss is well; two blocks lose it in the backward pass, and the later one is the first
    to.
    """
    words = ("model.n_layers=3", "train.activation_checkpointing=true", f"train.zero_stage={stage}")
    words = (
        *words,
        "train.precision=fp32",
        "optim=fused_adam",
        "optim.warmup=2steps",
        "cluster.gpus_per_node=2",
    )
    faults = [
        {
            "attempt": 1,
            "rank": 1,
            "kind": "nan-backward",
            "step": 5,
            "layer": f"blocks.{block}.ffn.up_proj",
        }
        for block in (0, 1)
    ]
    diverged = run(root, f"nan-backward-{stage}", *words, faults=faults)
    assert diverged.named("ended")[-1]["cause"] == "diverged", diverged.output
    told = json.loads(diverged.layout.divergence(1).read_text())
    assert (told["step"], told["pass"], told["layer"]) == (6, "backward", "blocks.1.ffn.up_proj")
    assert told["loss"] != "nan"
    assert told["grad_norm"] in ("nan", "inf")


def test_a_batch_that_diverges_is_left_out_where_that_is_wanted(root: Path) -> None:
    # DeepSpeed's Adam: with torch's, ZeRO writes weights anew from their fp32 copies after a step
    # that was passed over.
    words = ("recovery.on_divergence=skip", "recovery.max_divergences=1", "optim=fused_adam")
    plain = run(root, "skip-plain", *words)
    hurt = run(
        root,
        "skip",
        *words,
        faults=[{"attempt": 1, "rank": 0, "kind": "nan", "step": 5, "layer": "up_proj"}],
    )
    assert hurt.status == 0, hurt.output
    (told,) = hurt.named("diverged")
    assert (told["step"], told["data_step"]) == (6, 5)
    assert (told["pass"], told["layer"]) == ("forward", "blocks.0.ffn.up_proj")
    assert [end["cause"] for end in hurt.named("ended")] == ["diverged", "completed"]
    assert sorted(hurt.losses) == list(range(1, STEPS + 1))
    kept = [step for step in hurt.losses if hurt.losses[step] == plain.losses[step]]
    assert kept == [1, 2, 3, 4, 5]  # the sixth step trained on what would have been the seventh's


def test_a_loss_that_leaps_is_left_out_like_one_that_is_no_number(root: Path) -> None:
    words = ("recovery.spike_threshold=1", "recovery.on_divergence=skip", "train.duration=40steps")
    hurt = run(
        root,
        "leap",
        *words,
        faults=[{"attempt": 1, "rank": 0, "kind": "scale", "step": 30, "by": 100}],
    )
    assert hurt.status == 0, hurt.output
    assert [end["cause"] for end in hurt.named("ended")] == ["diverged", "completed"]
    (told,) = hurt.named("diverged")
    assert (told["step"], told["data_step"]) == (31, 30)
    assert "above the steps before it" in told["why"]
    assert hurt.named("resumed")[0]["step"] == 30
    assert sorted(hurt.losses) == list(range(1, 41))


def test_a_batch_that_always_diverges_does_not_go_on_for_ever(root: Path) -> None:
    faults = [{"attempt": number, "rank": 0, "kind": "nan", "step": 5} for number in (1, 2, 3)]
    hurt = run(
        root, "always", "recovery.on_divergence=skip", "recovery.max_divergences=1", faults=faults
    )
    assert hurt.status == 1
    assert [end["cause"] for end in hurt.named("ended")] == ["diverged", "diverged"]
    assert "recovery.max_divergences=1" in hurt.named("ended")[-1]["why"]
