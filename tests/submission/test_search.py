"""The words of a search typed again: it goes on as it began, and is never mixed with another
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.search_space import Space
from hpc_llm.submission import search
from hpc_llm.submission.search_file import Search, read

WORDS = ["-m", "+cluster=local-slurm", "run.name=s", "model=mpt-tiny,llama-tiny"]
WORDS += [
    "optim.lr=interval(0.001,0.1)",
    "search.trials=9",
    "search.parallel=2",
    "train.duration=100steps",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def typed(*words: str, site: Mapping[str, str] | None = None) -> tuple[Search, list[RunConfig]]:
    with search.begin([*WORDS, *words], site or {}) as begun:
        return begun


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.duration=200steps", "train.duration=100steps, now 200steps"),
        ("run.seed=5", "run.seed=17, now 5"),
        ("optim=fused_lion", "optim.betas=[0.9, 0.95], now [0.9, 0.99]; optim."),
    ],
)
def test_words_that_mean_another_training_are_refused_and_the_keys_named(
    word: str, key: str
) -> None:
    typed()
    with pytest.raises(InputError) as refused:
        typed(word)
    (problem,) = refused.value.problems
    assert problem.startswith("run.name=s: ") and "is a search of another training" in problem
    assert key in problem and problem.endswith("choose another run.name, or remove it")


def test_a_preset_that_has_changed_is_another_training_whichever_of_them_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed()
    composed = search.compose_space

    def with_edited_llama(words: list[str]) -> Space:
        space = composed(words)
        edited = {chosen: text.replace("name: llama-tiny", ("name: llama-tiny\n  z_loss: "
                                                           "0.1")) for chosen, text in
                  space.templates.items()}  # fmt: skip
        return Space(space.dimensions, edited)

    monkeypatch.setattr(search, "compose_space", with_edited_llama)
    with pytest.raises(InputError, match=r"z_loss=0\.0, now 0\.1"):
        typed()


def test_only_what_is_wanted_of_it_is_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    began, _ = typed(site={"SBATCH_ACCOUNT": "first"})
    again, _ = typed(
        "search.trials=40",
        "search.parallel=3",
        "cluster.time_min=99",
        site={"SBATCH_ACCOUNT": "second"},
    )
    trial = again.config(again.asked[0], 0)
    assert (trial.search.trials, trial.search.parallel) == (40, 3)
    assert trial.cluster == began.config(began.asked[0], 0).cluster
    assert (trial.cluster.account, trial.cluster.time_min) != ("second", 99)
    said = capsys.readouterr().err
    assert "s: goes on as it began; without effect: " in said
    assert "cluster.account=first, now second" in said and ", now 99" in said
    assert (
        read(Path("runs/.searches/s.json").absolute()).config(again.asked[0], 0).search.trials == 40
    )


def test_the_interpreter_stays_the_one_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began, _ = typed()
    monkeypatch.setattr(search.sys, "executable", "/another/python")
    again, trials = typed()
    assert again.python == began.python != "/another/python"
    assert {trial.cluster.python for trial in trials} == {began.python}


def test_a_dry_run_of_a_search_that_has_begun_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    typed()
    _, trials = typed("dry_run=true")
    assert trials and all(trial.dry_run for trial in trials)
    _, trials = typed()
    assert trials and not any(trial.dry_run for trial in trials)
    assert capsys.readouterr().err == ""
