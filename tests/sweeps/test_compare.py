"""What `compare` says of made-up sweeps: the table, the winner and whether it is one, the
ladder.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm import compare
from hpc_llm.sweeps import varied
from hpc_llm.sweeps.results import Result
from tests.sweeps.made_up import make_run

NOISE = (-0.01, 0.0, 0.01)


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = compare.main([str(tmp_path / "sweep"), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def optimizers(folder: Path, *, gap: float, seeds: int = 3) -> None:
    """Two optimizers × two learning rates × seeds; Lion at 3e-4 is better by `gap`."""
    for optim in ("fused_adam", "fused_lion"):
        for lr in ("1e-4", "3e-4"):
            for seed, noise in enumerate(NOISE[:seeds]):
                best = optim == "fused_lion" and lr == "3e-4"
                words = (f"optim={optim}", f"optim.lr={lr}", f"run.seed={seed}")
                make_run(
                    folder / f"{optim},lr={lr},seed={seed}",
                    *words,
                    heldout=3.0 + noise - gap * best,
                )


def test_the_winner_is_named_as_one_where_seeds_cannot_explain_it(
    tmp_path: Path, said: Any
) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    code, out, _ = said("--json")
    found = json.loads(out)
    assert (code, found["keys"]) == (0, ["optim.name", "optim.lr"])
    assert found["winner"]["winner"] == "optim=fused_lion, optim.lr=0.0003"
    assert found["winner"]["significant"] is True
    row = next(one for one in found["combinations"] if one["label"] == found["winner"]["winner"])
    assert row["heldout_loss"] == {"mean": pytest.approx(2.5), "deviation": pytest.approx(0.01)}
    assert (row["complete"], row["runs"], row["gpu_hours"]) == (3, 3, pytest.approx(6.0))
    assert row["p_baseline"] < 0.001
    assert found["baseline"] == "optim=fused_adam, optim.lr=0.0001"


def test_a_lead_within_the_seeds_is_not_called_a_win(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.002)
    out = said()[1]
    assert "lowest: optim=fused_lion, optim.lr=0.0003" in out
    assert "not shown to be a winner: seeds alone may explain its lead over" in out


def test_one_seed_is_too_few_to_tell_and_that_is_said(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5, seeds=1)
    assert "too few seeds to tell" in said()[1]


def test_of_seeds_alone_nobody_wins(tmp_path: Path, said: Any) -> None:
    for seed in range(2):
        make_run(tmp_path / "sweep" / str(seed), f"run.seed={seed}")
    out = said()[1]
    assert "2 complete runs that differ in nothing but their seed" in out
    assert "lowest" not in out


def test_what_only_follows_from_a_preset_is_no_swept_key(tmp_path: Path, said: Any) -> None:
    for model in ("mpt-125m", "mpt-350m"):
        make_run(tmp_path / "sweep" / model, f"model={model}")
    found = json.loads(said("--json")[1])
    assert found["keys"] == ["model.name"]
    assert {"model.d_model", "model.n_layers", "optim.lr"} <= set(found["follow"])


@pytest.mark.parametrize(
    "word",
    [
        *(
            "cluster.time_min=1440",
            "cluster.partition=long",
            "cluster.exclude=n7",
            "+cluster.exports.NCCL_DEBUG=INFO",
        ),
        *(
            "checkpoint.every=20min",
            "recovery.max_crashes=9",
            "run.max_gpu_hours=3",
            "search.parallel=2",
        ),
        *(
            "+cluster.sbatch.comment=x",
            "cluster.setup=[module load cuda]",
            "trackers=[]",
            "cluster.spare_nodes=1",
        ),
    ],
)
def test_a_seed_that_was_submitted_again_in_another_queue_is_still_a_seed(
    tmp_path: Path, said: Any, word: str
) -> None:
    for lr, loss in (("1e-4", 3.0), ("3e-4", 2.5)):
        for seed, noise in enumerate(NOISE):
            words = (
                f"optim.lr={lr}",
                f"run.seed={seed}",
                *([word] if (lr, seed) == ("3e-4", 1) else []),
            )
            make_run(tmp_path / "sweep" / f"lr={lr},seed={seed}", *words, heldout=loss + noise)
    found = json.loads(said("--json")[1])
    assert (found["keys"], [row["complete"] for row in found["combinations"]]) == (
        ["optim.lr"],
        [3, 3],
    )
    assert (found["winner"]["winner"], found["winner"]["significant"]) == ("optim.lr=0.0003", True)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.micro_batch", (1, 2)),
        ("train.zero_stage", (1, 2)),
        ("cluster.nodes", (1, 2)),
        ("cluster.gpus_per_node", (1, 2)),
        ("recovery.on_divergence", ("skip", "stop")),
    ],
)
def test_machines_that_are_varied_on_purpose_are_told_apart(
    tmp_path: Path, said: Any, key: str, values: tuple[Any, Any]
) -> None:
    for value in values:
        for seed in range(2):
            make_run(tmp_path / "sweep" / f"{value},{seed}", f"{key}={value}", f"run.seed={seed}")
    found = json.loads(said("--json")[1])
    assert (found["keys"], [row["values"][key] for row in found["combinations"]]) == (
        [key],
        list(values),
    )


def test_keys_that_are_newer_than_a_run_have_their_defaults(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    older = tmp_path / "sweep" / "fused_lion,lr=3e-4,seed=1" / "config.json"
    plain = json.loads(older.read_text())
    del (
        plain["train"]["loss_chunk"],
        plain["model"]["z_loss"],
        plain["data"]["packing"],
        plain["halving"],
    )
    older.write_text(json.dumps(plain))
    found = json.loads(said("--json")[1])
    assert found["winner"]["significant"] is True
    assert max(row["complete"] for row in found["combinations"]) == 3


def test_an_unfinished_run_is_shown_and_is_in_no_mean(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    make_run(
        tmp_path / "sweep" / "late",
        "optim=fused_lion",
        "optim.lr=3e-4",
        "run.seed=9",
        heldout=9.0,
        complete=False,
    )
    out = said()[1]
    assert "3 of 4" in out and "not complete, left out of the losses: late (step 40 of 100)" in out
    assert "2.5000 ± 0.0100" in out


def test_a_combination_without_a_complete_run_forbids_a_winner(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    make_run(tmp_path / "sweep" / "late", "optim=fused_lion", "optim.lr=5e-4", complete=False)
    assert json.loads(said("--json")[1])["winner"]["significant"] is False


def test_a_seed_that_ran_twice_counts_once(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    make_run(
        tmp_path / "sweep" / "z-again",
        "optim=fused_lion",
        "optim.lr=3e-4",
        "run.seed=1",
        heldout=0.1,
    )
    found = json.loads(said("--json")[1])
    assert found["notes"] == [
        "z-again: has the values and the seed of another run and is not counted"
    ]
    assert max(row["runs"] for row in found["combinations"]) == 3


def test_the_baseline_is_the_users_to_choose(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    found = json.loads(said("--json", "--baseline", "optim=fused_lion,optim.lr=3e-4")[1])
    assert found["baseline"] == "optim=fused_lion, optim.lr=0.0003"
    for words, wrong in (
        ("optim=fused_lion", "2 combinations"),
        ("model=x", "model is not swept here"),
    ):
        code, _, err = said("--baseline", words)
        assert code == 2 and wrong in err


def test_a_speed_that_is_no_number_is_null_for_scripts(tmp_path: Path, said: Any) -> None:
    run = make_run(tmp_path / "sweep" / "one")
    run.metrics.write_text(run.metrics.read_text().replace("1000.0", "NaN"))
    (row,) = json.loads(said("--json")[1], parse_constant=pytest.fail)["combinations"]
    assert (row["tokens_per_second"], row["complete"]) == (None, 1)


def test_csv_and_markdown_hold_the_same_table(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    lines = list(csv.DictReader(io.StringIO(said("--csv")[1])))
    assert [line["optim.name"] for line in lines] == ["fused_adam"] * 2 + ["fused_lion"] * 2
    assert float(lines[-1]["heldout_loss"]) == pytest.approx(2.5)
    table = said("--markdown")[1].splitlines()
    assert table[0].startswith("| optim | optim.lr | runs | held-out |")
    assert set(table[1]) <= set("|-: ")
    assert len({line.count("|") for line in table[:6]}) == 1


def ladder(folder: Path, models: dict[str, int]) -> None:
    for model, parameters in models.items():
        make_run(
            folder / model, f"model={model}", parameters=parameters, heldout=20 * parameters**-0.1
        )


def test_a_ladder_is_fitted_and_predicts_its_next_rung(tmp_path: Path, said: Any) -> None:
    ladder(
        tmp_path / "sweep",
        {"mpt-125m": 125_000_000, "mpt-350m": 350_000_000, "mpt-760m": 760_000_000},
    )
    (found,) = json.loads(said("--json", "--next", "1.3e9")[1])["ladders"]
    assert found["fit"]["b"]["value"] == pytest.approx(0.1)
    assert found["fit"]["next_loss"]["value"] == pytest.approx(20 * 1.3e9**-0.1)
    assert "predicts" in said()[1] and "1.65e+09 parameters" in said()[1]
    assert "FLOPs" in said("--against", "compute")[1]


def test_two_rungs_are_no_ladder(tmp_path: Path, said: Any) -> None:
    ladder(tmp_path / "sweep", {"mpt-125m": 125_000_000, "mpt-350m": 350_000_000})
    assert "a scaling fit needs 3 sizes, these are 2" in said()[1]


def test_what_is_for_a_ladder_is_refused_without_one(tmp_path: Path, said: Any) -> None:
    optimizers(tmp_path / "sweep", gap=0.5)
    for words in (("--against", "compute"), ("--next", "1e9")):
        code, _, err = said(*words)
        assert code == 2 and err.startswith(f"compare: {words[0]} ") and "is for a ladder" in err


def test_a_folder_without_runs_and_a_size_that_is_none_are_refused(
    tmp_path: Path, said: Any
) -> None:
    assert said()[0] == 2
    (tmp_path / "sweep").mkdir()
    assert "no runs lie in it" in said()[2]
    make_run(tmp_path / "sweep" / "one")
    assert "--next nan" in said("--next", "nan")[2]


def test_runs_can_be_given_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (
        make_run(tmp_path / name, f"optim.lr={lr}") for name, lr in (("a", "1e-4"), ("b", "2e-4"))
    )
    assert compare.main([str(first.path), str(second.path), str(first.path), "--json"]) == 0
    assert [row["runs"] for row in json.loads(capsys.readouterr().out)["combinations"]] == [1, 1]


configs = st.fixed_dictionaries(
    {key: st.integers(0, 2) for key in ("model.name", "x.a", "x.b", "x.c", "run.seed")}
)


@settings(deadline=None)
@given(st.lists(configs, min_size=1, max_size=12))
def test_the_swept_keys_tell_all_runs_apart_but_for_seeds_and_none_is_spare(
    found: list[dict[str, int]],
) -> None:
    runs = [
        Result(str(n), config, 1, 1.0, 1, 1, True, 1.0, 1.0, 1.0, 1.0, 0.0)
        for n, config in enumerate(found)
    ]
    keys, follow = varied.swept_keys(runs)
    whole = {
        tuple(value for key, value in sorted(config.items()) if key != "run.seed")
        for config in found
    }
    assert len({tuple(config[key] for key in keys) for config in found}) == len(whole)
    assert not set(keys) & set(follow)
    combined, repeated = varied.combinations(runs, keys)
    assert sum(len(one.complete) for one in combined) + len(repeated) == len(runs)
