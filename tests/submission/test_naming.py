"""Names of a sweep's runs, and which words are a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.checks import problems
from hpc_llm.config.compose import compose_sweep
from hpc_llm.config.errors import InputError
from hpc_llm.submission.naming import run_names
from tests.configs import make_config
from tests.submission.sweeping import sweep


@pytest.mark.parametrize(
    ("swept", "names"),
    [
        ([{"optim.lr": "0.0001", "run.seed": "2"}], ["lr=1e-4,seed=2"]),
        (
            [{"optim.lr": "0.1"}, {"optim.lr": "0.00025"}, {"optim.lr": "10000"}],
            ["lr=0.1", "lr=2.5e-4", "lr=1e4"],
        ),
        ([{"optim.lr": "1", "model.recipe.lr": "2"}], ["optim.lr=1,recipe.lr=2"]),
        ([{"model": "mpt-7b", "data.source": "/a b/c"}], ["model=mpt-7b,source=a-b-c"]),
        (
            [{"train.duration": "1e9tok"}, {"train.duration": "100steps"}],
            ["duration=1e9tok", "duration=100steps"],
        ),
        ([{"optim.betas": "[0.9,0.95]"}, {"trackers": "[]"}], None),
    ],
)
def test_runs_are_called_by_what_the_sweep_varies(
    swept: list[dict[str, str]], names: list[str] | None
) -> None:
    if names is None:
        assert run_names(swept[:1]) == ["betas=0.9-0.95"]
    else:
        assert run_names(swept) == names


values = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=120)


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), min_size=2, max_size=6, unique=True))
def test_names_are_distinct_folders_that_a_run_may_have(pairs: Sequence[tuple[str, str]]) -> None:
    names = run_names([{"optim.schedule": first, "data.source": second} for first, second in pairs])
    assert len(set(names)) == len(names)
    config = make_config()
    for name in names:
        assert problems(replace(config, run=replace(config.run, name=name))) == []


def test_a_sweep_lies_in_one_folder_with_its_name_or_one_that_the_same_words_get_again() -> None:
    configs = sweep("run.name=rates", "optim.lr=1e-3,2e-3")
    assert [(config.run.sweep, config.run.name) for config in configs] == [
        ("rates", "lr=1e-3"),
        ("rates", "lr=2e-3"),
    ]
    (derived,) = {config.run.sweep for config in sweep("optim.lr=1e-3,2e-3")}
    assert derived is not None
    assert re.fullmatch(r"mpt-tiny-sweep-[0-9a-f]{8}", derived)
    assert {config.run.sweep for config in sweep("optim.lr=0.001,0.002", "cluster.nodes=1")} == {
        derived
    }
    assert {config.run.sweep for config in sweep("optim.lr=1e-3,3e-3")} != {derived}


def test_names_that_are_swept_themselves_are_the_runs() -> None:
    configs = sweep("run.name=a,b", "run.sweep=mine")
    assert [(config.run.sweep, config.run.name) for config in configs] == [
        ("mine", "a"),
        ("mine", "b"),
    ]
    with pytest.raises(InputError, match=r"run\.name=a: several runs of this sweep have it"):
        sweep("run.name=a,b", "run.seed=1,2")


def test_one_choice_is_no_sweep() -> None:
    (config,) = sweep("run.name=a", "run.seed=3")
    assert (config.run.name, config.run.sweep) == ("a", None)


def test_an_experiment_may_be_a_sweep_which_the_users_words_add_to() -> None:
    configs = sweep("experiment=ablation-optimizer")
    assert len(configs) == 24
    assert {config.run.sweep for config in configs} == {"ablation-optimizer"}
    assert configs[0].run.name == "optim=fused_adam,lr=1e-4,seed=0"
    fewer = sweep(
        "experiment=ablation-optimizer", "optim.lr=1e-3", "run.seed=4,5", "train.duration=10steps"
    )
    assert [(config.optim.name, config.run.seed) for config in fewer] == [
        *(("fused_adam", seed) for seed in (4, 5)),
        *(("fused_lion", seed) for seed in (4, 5)),
    ]
    assert {(config.optim.lr, config.train.duration) for config in fewer} == {(1e-3, "10steps")}


def test_every_kind_of_position_is_compared_and_differs_in_nothing_else() -> None:
    configs = sweep("experiment=ablation-position", "model=mpt-tiny")
    kinds = [config.model.positions for config in configs]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("alibi", "learned", "rope", "none"), 6
    )
    same = {
        str(
            replace(config, model=replace(config.model, positions="alibi"), run=configs[0].run)
        ): config.optim.lr
        for config in configs
    }
    assert sorted(same.values()) == [3e-4, 6e-4]


def test_the_ladder_has_sizes_with_their_own_recipes() -> None:
    configs = sweep("experiment=ladder")
    assert [config.run.name for config in configs] == [
        f"model=mpt-{size}" for size in ("125m", "350m", "760m", "1b")
    ]
    assert len({config.train.duration for config in configs}) == 4


def test_a_sweep_in_a_users_own_folder_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {sweeper: {params: {run.seed: 'range(5)'}}}\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert [config.run.seed for config in sweep("experiment=mine")] == list(range(5))


def test_a_named_sweep_is_not_submitted_as_one_run_nor_with_another() -> None:
    with pytest.raises(InputError, match="experiment=ladder: it is a sweep; add -m"):
        compose_sweep(["experiment=ladder"])
    with pytest.raises(InputError, match="ladder is a sweep of its own"):
        sweep("experiment=mpt-7b,ladder")


@pytest.mark.parametrize(
    "words", [["optim.lr=1e-4,0.0001"], ["run.seed=1,2", "train.duration=10steps,10steps"]]
)
def test_the_same_run_twice_is_refused_by_its_key(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"=.*: this sweep has it twice"):
        sweep(*words)


def test_runs_that_differ_in_the_machine_alone_are_no_duplicates() -> None:
    assert len(sweep("train.micro_batch=1,2", "cluster.gpus_per_node=1,2")) == 4
