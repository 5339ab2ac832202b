"""What is known of a run that is there already, when it is submitted again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import identity
from hpc_llm.submission import examine
from tests.configs import make_config

STAGES = {"a100x64": 2, "a100x8": 3}  # what a 30B needs there


def saved(root: Path, config: RunConfig, zero_stage: int) -> RunConfig:
    """The configuration of a run below `root` that has such a checkpoint."""
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, root=str(root), name="mine")
    )
    folder = manifest.folder_of(identity.layout_for(config).checkpoints, 11)
    folder.mkdir(parents=True)
    manifest.publish(folder, manifest.Manifest(11, 1, 1, 2, zero_stage, "bf16", "AdamW", {}, []))
    return config


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_is_chosen_that_can_load_the_runs_checkpoint(tmp_path: Path, stage: int) -> None:
    small = make_config("+cluster=a100x8", "model=mpt-125m", "dry_run=true")
    assert examine.examine(saved(tmp_path / "3", small, 3)).plan.zero_stage == 3
    fp32 = make_config("+cluster=a100x8", "model=mpt-125m", "train.precision=fp32", "dry_run=true")
    assert examine.examine(saved(tmp_path / "0", fp32, 0)).plan.zero_stage == 0
    assert examine.examine(saved(tmp_path / "1", small, stage)).plan.zero_stage == 1


def test_a_machine_on_which_no_such_stage_fits_is_refused(tmp_path: Path) -> None:
    large = {
        name: make_config(f"+cluster={name}", "model=mpt-30b", "dry_run=true") for name in STAGES
    }
    assert {
        name: examine.examine(config).plan.zero_stage for name, config in large.items()
    } == STAGES
    assert examine.examine(saved(tmp_path / "more", large["a100x64"], 2)).plan.zero_stage == 2
    with pytest.raises(
        InputError,
        match="checkpoint of step 11 can be loaded at stage 1 or 2 alone, which needs more",
    ):
        examine.examine(saved(tmp_path / "fewer", large["a100x8"], 2))


def test_settings_that_cannot_load_the_checkpoint_are_named(tmp_path: Path) -> None:
    for cluster, name in (
        ("+cluster=a100x8", "gpu"),
        ("cluster.device=cpu", "cpu"),
    ):  # memory known, and unknown
        config = make_config(cluster, "model=mpt-125m", "train.precision=bf16", "dry_run=true")
        with pytest.raises(InputError) as raised:
            examine.examine(saved(tmp_path / name, config, 0))
        (problem,) = raised.value.problems
        assert problem.startswith(
            "train.precision=bf16 optim=torch_adam: the run's checkpoint of step 11 can be"
        )


def test_a_run_that_has_begun_keeps_what_would_begin_after_its_end(tmp_path: Path) -> None:
    words = (
        "+cluster=a100x8",
        "model=mpt-125m",
        "train.duration=100steps",
        "train.seq_len_warmup={64: 500steps}",
    )
    config = make_config(*words, "dry_run=true")
    with pytest.raises(InputError, match="would begin after 500 steps"):
        examine.examine(config)
    assert examine.examine(saved(tmp_path, config, 1)).plan.steps == 100


def test_another_stage_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    asked = make_config("+cluster=a100x8", "model=mpt-125m", "train.zero_stage=3", "dry_run=true")
    with pytest.raises(
        InputError, match=r"train\.zero_stage=3: .* step 11 can be loaded at stage 1 or 2 alone"
    ):
        examine.examine(saved(tmp_path, asked, 1))
