"""Sweeps on a real Slurm to their end: through preemption and a node's death, what they found, and
halving.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from hpc_llm.runs.layout import RunLayout
from tests.chaos import warm_ranks
from tests.chaos.local_runs import Finished
from tests.on_slurm.slurm_runs import WORDS, SlurmRuns, processes
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

CHANGED = ("train.duration", "train.eval_every", "optim", "model.n_layers", "cluster.nodes")
ONE_RANK = (
    *(word for word in WORDS if not word.startswith(CHANGED)),
    "cluster.nodes=1",
    "train.eval_batches=4",
)
LAYERS = (1, 2)
OPTIMIZERS = ("fused_adam", "fused_lion")
RATES = ("1e-4", "3e-3")
SEEDS = range(3)


def sweep(runs: SlurmRuns, *words: str) -> list[dict[str, str]]:
    """`submit -m`: the runs that were submitted."""
    command = [
        runs.python,
        "-m",
        "hpc_llm.submit",
        *ONE_RANK,
        "-m",
        f"run.root={runs.root}",
        "json=true",
        *words,
    ]
    found: list[dict[str, str]] = json.loads(runs.run(*command))
    return found


def complete(folder: Path) -> int:
    return len(
        [
            path
            for path in folder.glob("*/ledger/supervisor-*.jsonl")
            if '"completed"' in path.read_text()
        ]
    )


def running(runs: SlurmRuns, folder: Path) -> dict[str, str]:
    """Runs that train and have done a few steps: name → the job's address."""
    live = {row[0] for row in runs.slurm.squeue("--array", "--states=R", fields="%F_%K")}
    found = {}
    for path in folder.glob("*/config.json"):
        run = RunLayout(path.parent)
        started = Finished(0, "", run).named("started")
        if started and started[-1]["job"] in live and runs.steps(run) >= 100:
            found[run.name] = str(started[-1]["job"])
    return found


def requeued(folder: Path) -> set[str]:
    """Runs with an attempt that ended before the run did."""
    return {
        path.parent.parent.name
        for path in folder.glob("*/ledger/*.jsonl")
        if '"preempted"' in path.read_text()
    }


def preempt_one(runs: SlurmRuns, folder: Path, hit: set[str]) -> set[str]:
    """Preempt a run that was not yet, and say which have been; none more where it ended first."""
    runs.until(lambda: bool(running(runs, folder).keys() - hit), "a task that trains")
    name, job = next(pair for pair in running(runs, folder).items() if pair[0] not in hit)
    done = complete(folder)
    runs.slurm.tool("preempt", job, check=False)
    # Of two tasks on a node Slurm chooses which one goes.
    runs.until(lambda: len(requeued(folder)) > len(hit) or complete(folder) > done, f"{name} gone")
    return requeued(folder)


def power_off(run: RunLayout) -> None:
    """Kill all that a run has on its one node, slurmstepd first, so that nobody is left to tell
    Slurm.
    """
    for program in ("hpc_llm.supervise", "hpc_llm.train"):
        for pid in processes(run.path, program):
            for process in (*psutil.Process(pid).parents(), psutil.Process(pid)):
                if process.name().startswith("slurmstepd") or process.pid == pid:
                    process.kill()


def test_24_runs_meet_preemption_and_a_dead_node_and_their_sweep_has_an_answer(
    make_slurm: Callable[..., SlurmCluster], tmp_path: Path
) -> None:
    runs = SlurmRuns(make_slurm("--nodes", "3", "--slurmd-timeout", "5"), tmp_path / "runs")
    words = (
        "run.sweep=rates",
        f"model.n_layers={','.join(map(str, LAYERS))}",
        f"optim={','.join(OPTIMIZERS)}",
    )
    words = (*words, f"optim.lr={','.join(RATES)}", "run.seed=range(3)", "train.duration=400steps")
    folder = runs.root / "rates"
    assert len(sweep(runs, *words)) == 24

    hit: set[str] = set()
    while len(hit) < 2:
        hit = preempt_one(runs, folder, hit)
    runs.until(lambda: bool(running(runs, folder).keys() - hit), "another that trains")
    bereft = next(name for name in running(runs, folder) if name not in hit)
    for pid in processes(folder / bereft, "hpc_llm.train"):
        # so that it does not end before its node does
        os.kill(warm_ranks.pid_of_fork(pid), signal.SIGSTOP)
    (node,) = Finished(0, "", RunLayout(folder / bereft)).named("started")[-1]["nodes"]
    runs.slurm.tool("kill-node", node)
    power_off(RunLayout(folder / bereft))
    # Its slot went to a task that waited: on a slow machine to all that do.
    again = lambda: len(Finished(0, "", RunLayout(folder / bereft)).named("started")) > 1  # noqa: E731
    runs.until(again, "it goes on elsewhere", 600)
    runs.slurm.tool("revive-node", node)
    runs.release()
    runs.until(lambda: complete(folder) == 24, "24 complete", 600)

    standing = runs.status().values()
    assert {row["state"] for row in standing} == {"completed"} and len(standing) == 24
    assert {row["name"] for row in standing if row["restarts"]} >= {*hit, bereft}
    said = runs.slurm.run(sys.executable, "-m", "hpc_llm.compare", str(folder), "--json").stdout
    report: dict[str, Any] = json.loads(said)
    rows = report["combinations"]
    assert len(rows) == 8 and all(row["complete"] == 3 for row in rows)
    best = min(rows, key=lambda row: row["heldout_loss"]["mean"])
    assert best["values"]["optim.lr"] == 3e-3
    assert report["winner"]["winner"] == best["label"] and report["winner"]["why"]
    assert isinstance(report["winner"]["significant"], bool)

    assert sweep(runs, *words) == []
    lost = folder / "n_layers=2,optim=fused_lion,lr=3e-3,seed=1"
    shutil.rmtree(lost)
    (again,) = sweep(runs, *words)
    assert Path(again["run_dir"]) == lost
    runs.until(lambda: complete(folder) == 24, "the one that was removed", 120)


def test_the_losers_of_a_rung_are_stopped_and_can_be_taken_up_again(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    runs = SlurmRuns(slurm, tmp_path / "runs")
    rates = ("1e-5", "1e-3", "3e-3")
    words = (
        "run.sweep=race",
        f"optim.lr={','.join(rates)}",
        "train.duration=1000steps",
        "train.eval_every=300steps",
    )
    words = (*words, "optim=fused_adam", "cluster.array_throttle=3")
    runs.release()
    sweep(runs, *words, "halving.rungs=[300steps]", "halving.keep=0.6")
    race = {rate: RunLayout(runs.root / "race" / f"lr={rate}") for rate in rates}
    runs.until(lambda: not slurm.squeue(), "an empty queue", 240)
    states = {row["name"]: (row["state"], row["cause"]) for row in runs.status().values()}
    assert states == {"lr=1e-5": ("stopped", "halved")} | dict.fromkeys(
        ("lr=1e-3", "lr=3e-3"), ("completed", "completed")
    )
    (told,) = Finished(0, "", race["1e-5"]).named("halved")
    assert "2 of 3 runs are better" in told["why"]
    assert runs.steps(race["1e-5"]) < 1000
    assert (
        sweep(runs, *words, "halving.rungs=[300steps]", "halving.keep=0.6") == []
    )  # what is out stays out
    (again,) = sweep(runs, *words)
    assert again["run_dir"].endswith("lr=1e-5")
    runs.until(lambda: complete(runs.root / "race") == 3, "the loser's end", 120)
    assert Finished(0, "", race["1e-5"]).named("resumed")[-1]["step"] >= 250
    until(lambda: not slurm.squeue(), 30, "an empty queue")


def test_a_run_waits_for_the_one_that_it_depends_on(slurm: SlurmCluster, tmp_path: Path) -> None:
    runs = SlurmRuns(slurm, tmp_path / "runs")
    first = runs.submit(
        "first", "cluster.nodes=1", "train.duration=300steps", "cluster.sbatch.hold=true"
    )
    second = runs.submit(
        "second", "cluster.nodes=1", "train.duration=300steps", "run.depends_on=first"
    )
    assert slurm.job(runs.job_of(second))["Dependency"].startswith(f"afterok:{runs.job_of(first)}")
    slurm.run("scontrol", "release", runs.job_of(first))
    runs.finish(second, 180, steps=300)
    ended = {run.name: Finished(0, "", run).events for run in (first, second)}
    done = max(event.time for event in ended["first"] if event.event == "completed")
    assert min(event.time for event in ended["second"] if event.event == "started") >= done
