"""The walk of a run through `submit`: it is planned once, and travels as one value."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_llm import submit
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.plan import make_plan
from hpc_llm.runs import identity
from hpc_llm.slurm import client
from hpc_llm.slurm.records import Submission
from hpc_llm.submission import cluster, examine, local, local_sweep, prerequisites, send

NUM_RUNS = 50
SWEEP = (f"run.seed=range(0,{NUM_RUNS})", "-m")
TINY = ("model.n_layers=1", "train.duration=4steps", "run.name=walk")
FACTS = DataFacts("/data", 10**6, 10**5, 512, 4.0, {"stdlib": 10**6}, digests={"stdlib": "ab"})
COUNTED = {"make_plan": make_plan, "layout_for": identity.layout_for}


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the counted functions are called, from wherever in the package."""
    count: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            count[name] += 1
            return function(*arguments, **named)

        return counted

    for name, function in COUNTED.items():
        for module in list(sys.modules.values()):
            if module.__name__.startswith("hpc_llm") and getattr(module, name, None) is function:
                monkeypatch.setattr(module, name, counting(name, function))
    return count


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that accepts everything, ranks that end at once, and data that is not prepared."""
    numbers = iter(range(12, 1000))
    monkeypatch.setattr(send, "send", lambda *_, **__: Submission(next(numbers)))
    monkeypatch.setattr(client, "queued", list)
    monkeypatch.setattr(client, "config", dict)
    monkeypatch.setattr(cluster, "require_sbatch", lambda: None)
    for module in (local, local_sweep):
        monkeypatch.setattr(module, "refuse_login_node", lambda _: None)
    monkeypatch.setattr(local_sweep.Supervisors, "work", lambda _: 0)
    monkeypatch.setattr(local, "supervise", lambda _: Done())
    monkeypatch.setattr(prerequisites, "prepare_data", lambda _: None)
    monkeypatch.setattr(prerequisites, "build", lambda _: None)


class Done:
    """A supervisor that has left."""

    def wait(self, timeout: float) -> int:
        return 0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in local.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("sweep", [(), SWEEP], ids=["one run", "a sweep"])
@pytest.mark.parametrize(
    "argv",
    [
        ("+cluster=local-slurm",),
        ("+cluster=local-slurm", "dry_run=true"),
        (),
        ("dry_run=true",),
    ],
    ids=["a cluster", "a dry run of a cluster", "here", "a dry run here"],
)
def test_a_run_is_planned_once_and_placed_at_most_twice(
    count: Counter[str], tmp_path: Path, argv: tuple[str, ...], sweep: tuple[str, ...]
) -> None:
    assert submit.main([f"run.root={tmp_path}", *TINY, *argv, *sweep]) == 0
    num_runs = NUM_RUNS if sweep else 1
    assert count["make_plan"] == num_runs
    assert num_runs <= count["layout_for"] <= 2 * num_runs
    frozen = list(tmp_path.rglob("config.json"))
    assert len(frozen) == (0 if "dry_run=true" in argv else num_runs)


@pytest.mark.parametrize("argv", [("+cluster=local-slurm",), ()], ids=["a cluster", "here"])
def test_a_run_whose_data_is_prepared_in_between_is_planned_again(
    count: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
) -> None:
    prepared = []
    monkeypatch.setattr(prerequisites, "prepare_data", prepared.append)
    monkeypatch.setattr(examine, "known_data", lambda _: FACTS if prepared else None)
    assert submit.main([f"run.root={tmp_path}", *TINY, *argv]) == 0
    assert count == {"make_plan": 2, "layout_for": 1}
    (path,) = tmp_path.rglob("plan.json")
    assert '"stdlib": "ab"' in path.read_text()


def test_of_a_sweep_only_the_runs_of_new_data_are_planned_again(
    count: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def known_data(config: RunConfig) -> DataFacts | None:
        return FACTS if prepared and config.train.seq_len == 64 else None

    monkeypatch.setattr(prerequisites, "prepare_data", prepared.append)
    monkeypatch.setattr(examine, "known_data", known_data)
    argv = ("+cluster=local-slurm", "train.seq_len=32,64,128", "-m")
    assert submit.main([f"run.root={tmp_path}", *TINY, *argv]) == 0
    assert count == {"make_plan": 4, "layout_for": 3}
