"""What a search asks for next."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import statistics
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.config.search_space import Dimension, compose_space
from hpc_llm.storage import locks
from hpc_llm.submission import search
from hpc_llm.submission.sampler import Trial, ask

WORDS = ["-m", "+cluster=local-slurm", "run.name=s", "search.trials=9"]
RATE = Dimension("optim.lr", False, [], 1e-6, 1.0, log=True)
BATCH = Dimension("train.global_batch", False, [8, 16, 32])
LAYERS = Dimension("model.n_layers", False, [], 1, 4, whole=True)


def loss(chosen: dict[str, float]) -> float:
    return abs(math.log10(chosen["optim.lr"]) + 3) + (chosen["train.global_batch"] != 16)


def test_what_is_asked_is_a_function_of_what_is_known() -> None:
    known = [Trial({"optim.lr": 1e-3, "train.global_batch": 8}, 2.0)]
    first = ask([RATE, BATCH], known, 3, seed=1)
    assert first == ask([RATE, BATCH], known, 3, seed=1)
    assert first != ask([RATE, BATCH], known, 3, seed=2)
    assert len({one["optim.lr"] for one in first}) == 3


def test_it_learns_from_losses_and_bears_failures() -> None:
    """After forty trials it asks near the least loss, an order of magnitude closer than it
    began.
    """
    trials = [Trial({"optim.lr": 1e-2, "train.global_batch": 8})]  # failed
    while len(trials) < 40:
        trials += [Trial(chosen, loss(chosen)) for chosen in ask([RATE, BATCH], trials, 4, seed=7)]
    first, last = ([loss(trial.chosen) for trial in some] for some in (trials[1:11], trials[-10:]))
    assert statistics.median(last) < statistics.median(first) / 2


def test_numbers_are_short_and_within_their_bounds() -> None:
    narrow = Dimension("optim.lr", False, [], 1.00001e-3, 1.00009e-3)
    (one,) = ask([narrow], [], 1, seed=0)
    assert narrow.low <= one["optim.lr"] <= narrow.high
    asked = [each["optim.lr"] for each in ask([RATE], [], 9, seed=0)]
    assert asked == [float(f"{rate:.4g}") for rate in asked]


def test_trials_that_run_and_numbers_that_are_whole() -> None:
    running = [Trial({"model.n_layers": 2}, running=True)]
    assert all(one["model.n_layers"] in (1, 2, 3, 4) for one in ask([LAYERS], running, 5, seed=0))


def test_a_space_has_presets_values_and_intervals_and_each_trial_is_composed_whole() -> None:
    words = [
        *WORDS,
        "model=mpt-tiny,llama-tiny",
        "optim.lr=tag(log,interval(1e-5,1e-2))",
        "train.global_batch=8,16",
        "model.n_layers=int(interval(1,4))",
    ]
    space = compose_space(words)
    assert [(one.key, one.is_group, one.choices) for one in space.dimensions[:2]] == [
        ("model", True, ["mpt-tiny", "llama-tiny"]),
        ("train.global_batch", False, [8, 16]),
    ]
    assert space.dimensions[2] == Dimension("optim.lr", False, [], 1e-5, 1e-2, log=True)
    assert space.dimensions[3] == Dimension("model.n_layers", False, [], 1, 4, whole=True)
    chosen = {
        "model": "llama-tiny",
        "train.global_batch": 16,
        "optim.lr": 3e-4,
        "model.n_layers": 3,
    }
    config = space.config(chosen)
    assert (config.model.name, config.model.n_layers, config.optim.lr) == ("llama-tiny", 3, 3e-4)
    assert config.model.norm == "rmsnorm"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m"], "search.trials: nothing to choose"),
        (
            ["optim.lr=interval(1,0)", "-m"],
            "optim.lr=interval(1,0): interval(low,high) with low below high",
        ),
        (["optim.lr=tag(log,interval(0,1))", "-m"], "above 0 with tag(log)"),
        (["optim.lr=interval(0,1)"], "search.trials: a search is a sweep; add -m"),
        (["optim.lrr=interval(0,1)", "-m"], "optim.lrr"),
    ],
)
def test_what_is_no_space_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=r".*") as raised:
        compose_space([*WORDS[1:], *words])
    assert said in str(raised.value)


def test_a_search_that_somebody_is_at_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "SILENT_S", 0.0)
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    busy = "run.name=s: another submission or a watchdog is at this search"
    (tmp_path / ".searches").mkdir()
    with (
        locks.locked(tmp_path / ".searches" / "s.lock"),
        pytest.raises(InputError, match=f"^{re.escape(busy)}, and was not over in "),
        search.begin([*WORDS, f"run.root={tmp_path}", "optim.lr=1e-3,1e-2"], {}),
    ):
        pass
    assert capsys.readouterr().err.startswith(f"{busy}; waiting ")


def test_a_file_system_without_locks_is_told_of_and_stops_no_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.one_at_a_time(tmp_path / "s.lock", "busy"):
        pass
    assert "no locks here (No locks available)" in capsys.readouterr().err
