"""sbatch/*.sbatch as a person submits them by hand."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_llm.preparation.pipeline import prepare
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from tests.configs import make_config

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--ntasks-per-node=2",
    "--gpus-per-node=2",
    "--cpus-per-task=1",
    "--time=10",
    "--signal=B:USR2@60",
]
WORDS = [
    "cluster.device=cpu",
    "optim=torch_adam",
    "model.d_model=64",
    "model=mpt-tiny",
    "train.global_batch=4",
]
# Freezes in earnest; notes what else it is asked for instead of training.
PYTHON = """#!/bin/bash
if [[ $2 == hpc_llm.freeze || $2 == hpc_llm.prepare ]]; then exec {python} "$@"; fi
echo "$* in $(pwd -P)" >>{seen}
[[ ! -e {stay} ]] || exec sleep 60
"""


@pytest.fixture
def by_hand(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`by_hand(script, options, words)` submits a script from the checkout; its job id."""
    places = {name: shlex.quote(str(tmp_path / name)) for name in ("seen", "stay")}
    (tmp_path / "python").write_text(PYTHON.format(python=shlex.quote(sys.executable), **places))
    (tmp_path / "python").chmod(0o755)
    more = {
        "PYTHON": str(tmp_path / "python"),
        "RUN_ROOT": str(tmp_path / "runs"),
        "PYTHONPATH": str(REPOSITORY),
    }
    monkeypatch.setattr(slurm, "env", {**slurm.env, **more})

    def submit(script: str, options: list[str], words: list[str]) -> str:
        log = f"--output={tmp_path}/%A_%a.log"
        return slurm.sbatch(
            f"--chdir={REPOSITORY}", log, *options, str(REPOSITORY / "sbatch" / script), *words
        )

    return submit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards") / "stdlib"
    prepare(make_config(), folder, lambda *_: None)
    return f"data.out={folder}"


def test_train_freezes_once_and_every_life_of_the_job_takes_that_run(
    slurm: SlurmCluster, by_hand: Callable[..., str], data: str, tmp_path: Path
) -> None:
    (tmp_path / "stay").touch()
    job = by_hand("train.sbatch", ["--job-name=mine", "--nodes=2", *SMALL], [*WORDS, data])
    run = RunLayout(tmp_path / "runs" / "mine")
    slurm.wait_text(tmp_path / "seen", f"-m hpc_llm.supervise {run.path} in {tmp_path}")
    config = json.loads(run.config.read_text())
    assert (config["cluster"]["nodes"], config["cluster"]["gpus_per_node"]) == (2, 2)
    assert config["cluster"]["partition"] == "train"
    assert config["cluster"]["time_min"] == 10  # the header's, not the preset's day
    assert "#SBATCH --time=0-00:10:00\n" in run.script.read_text()  # what a watchdog would submit
    (event,) = ledger.read(run.ledger)
    assert (event.event, event.facts["job"]) == ("submitted", job)

    frozen = run.config.read_bytes()
    (tmp_path / "stay").unlink()
    slurm.run("scontrol", "requeue", job)
    slurm.wait_state(job, "PENDING")
    slurm.run(
        "scontrol", "update", f"jobid={job}", "StartTime=now+2"
    )  # at once, slurmd would refuse: client.expedite
    slurm.wait_state(job, {"COMPLETED", "FAILED"})
    assert str(run.code.resolve()) in (tmp_path / "seen").read_text()
    first, second = (tmp_path / "seen").read_text().splitlines()
    assert first == second
    assert run.config.read_bytes() == frozen
    assert len(ledger.read(run.ledger)) == 1


def test_each_task_of_sweep_freezes_its_own_run(
    slurm: SlurmCluster, by_hand: Callable[..., str], data: str, tmp_path: Path
) -> None:
    again = [f"cluster.python={tmp_path / 'python'}", "cluster.cpus_per_gpu=1", "cluster.mem=null"]
    job = by_hand("sweep.sbatch", ["--job-name=rates", "--nodes=1", *SMALL], [*WORDS, data, *again])
    for task, rate in enumerate(("1e-4", "2e-4", "4e-4")):
        slurm.wait_state(f"{job}_{task}", {"COMPLETED", "FAILED"}, timeout_s=60)
        run = RunLayout(tmp_path / "runs" / "rates" / f"lr={rate}")
        assert json.loads(run.config.read_text())["optim"]["lr"] == float(rate)
        assert ledger.read(run.ledger)[0].facts["job"] == f"{job}_{task}"
        assert f"hpc_llm.supervise {run.path} in " in (tmp_path / "seen").read_text()
    other = slurm.sbatch("--array=2", str(run.script))  # as a watchdog submits it
    slurm.wait_state(f"{other}_2", {"COMPLETED", "FAILED"}, timeout_s=60)
    assert (tmp_path / "seen").read_text().count(f"hpc_llm.supervise {run.path} in ") == 2


def test_a_mistake_in_the_words_ends_the_job_with_one_line(
    slurm: SlurmCluster, by_hand: Callable[..., str], data: str, tmp_path: Path
) -> None:
    job = by_hand("train.sbatch", ["--nodes=1", *SMALL], [*WORDS, data, "optim.lrr=1"])
    slurm.wait_state(job, "FAILED")
    assert slurm.job(job)["ExitCode"] == "2:0"
    (log,) = tmp_path.glob("*.log")
    assert log.read_text().startswith("freeze: optim.lrr: unknown key")
    assert not (tmp_path / "seen").exists()


def test_prepare_tokenises_in_a_job(
    slurm: SlurmCluster, by_hand: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(3):
        text = " ".join(
            f"{word} {number}" for word in Path(os.__file__).read_text().split()[number::300]
        )
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    words = [
        f"data.source={tmp_path / 'text'}",
        "model=mpt-tiny",
        "model.vocab_size=384",
        "data.heldout_fraction=0.3",
    ]
    job = by_hand("prepare.sbatch", ["--cpus-per-task=2"], [*words, f"data.out={tmp_path / 'out'}"])
    slurm.wait_state(job, {"COMPLETED", "FAILED"})
    (log,) = tmp_path.glob("*.log")
    assert slurm.job(job)["JobState"] == "COMPLETED", log.read_text()
    assert (tmp_path / "out" / "manifest.json").exists()


def test_watchdog_queues_its_successor_before_it_begins(
    slurm: SlurmCluster, by_hand: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "stay").touch()
    names = []
    for root in (tmp_path / "runs", tmp_path / "others"):
        root.mkdir()
        slurm.env["RUN_ROOT"] = str(root)
        job = by_hand("watchdog.sbatch", [f"--output={tmp_path}/watchdog.log"], [])
        slurm.wait_text(tmp_path / "seen", f"-m hpc_llm.watchdog {root} in {REPOSITORY}")
        names.append(slurm.job(job)["JobName"])
        (successor,) = (
            row for row in slurm.squeue(f"--name={names[-1]}", fields="%i %T") if row[0] != job
        )
        assert successor[1] == "PENDING"
        waits = slurm.job(successor[0])
        assert "singleton" in waits["Dependency"] and f"afterany:{job}" in waits["Dependency"]
        assert f"scancel --me --name={names[-1]} ends it" in (tmp_path / "watchdog.log").read_text()
    assert len(set(names)) == 2, "the second root's watchdog waits for nobody of the first's"
    for name in names:
        slurm.run("scancel", f"--name={name}")


def test_a_watchdog_that_ends_at_once_is_followed_after_a_minute(
    slurm: SlurmCluster, by_hand: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    job = by_hand("watchdog.sbatch", [f"--output={tmp_path}/watchdog.log"], [])
    slurm.wait_state(job, "COMPLETED")
    name = slurm.job(job)["JobName"]
    ((successor, state),) = (
        row for row in slurm.squeue(f"--name={name}", fields="%i %T") if row[0] != job
    )
    assert state == "PENDING"
    begins, submitted = (
        datetime.fromisoformat(slurm.job(successor)[key]) for key in ("EligibleTime", "SubmitTime")
    )
    assert (begins - submitted).total_seconds() >= 59
    slurm.run("scancel", f"--name={name}")


@pytest.mark.parametrize("missing", ["PYTHON", "RUN_ROOT"])
def test_a_watchdog_without_python_or_runs_says_so_and_queues_nothing(
    slurm: SlurmCluster, by_hand: Callable[..., str], tmp_path: Path, missing: str
) -> None:
    (tmp_path / "runs").mkdir()
    slurm.env[missing] = str(tmp_path / "nowhere")
    job = by_hand("watchdog.sbatch", [f"--output={tmp_path}/watchdog.log"], [])
    slurm.wait_state(job, "FAILED")
    (line,) = (tmp_path / "watchdog.log").read_text().splitlines()
    assert line.startswith("watchdog: no ") and str(tmp_path / "nowhere") in line
    assert [
        row
        for row in slurm.squeue("--states=PENDING", fields="%i %j")
        if row[1].startswith("watchdog")
    ] == []
