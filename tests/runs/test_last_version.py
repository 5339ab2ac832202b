"""A run of the version before (last_version/README.md) is read, looked after, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.recovery import outside
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.observations import JobAnswer
from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.run_record import read_record
from hpc_llm.runs import freeze, ledger, snapshot
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.records import JobLife
from hpc_llm.storage.files import link_atomic, write_json
from hpc_llm.trackers import jsonl
from tests.runs.machine import python

LAST_VERSION = Path(__file__).parent / "last_version"
STEPS = 30
CHECKPOINT_STEP = 20
SAME_RUN = (
    "cluster.device=cpu",
    "cluster.threads_per_rank=1",
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "model.vocab_size=384",
    "model.max_seq_len=32",
    "train.seq_len=16",
    "train.global_batch=4",
    f"train.duration={STEPS}steps",
    "train.eval_batches=1",
    "optim.warmup=2steps",
    "checkpoint.every=10steps",
    "checkpoint.keep=1",
    "trackers=[]",
    "data=files",
    "data.source=/srv/hpc/corpus",
    "data.vocab_size=384",
    "data.out=data",
    "run.root=runs",
    "local=true",
)


def copy_to(folder: Path) -> RunLayout:
    """The run, its root and its data, with the folders that git does not keep."""
    shutil.copytree(LAST_VERSION, folder, symlinks=True, dirs_exist_ok=True)
    layout = RunLayout(folder / "runs" / "tiny")
    layout.make_folders()
    return layout


@pytest.fixture
def old(tmp_path: Path) -> RunLayout:
    return copy_to(tmp_path)


def said(*words: str, cwd: Path) -> Any:
    """The JSON that a verb prints; no Slurm is on PATH."""
    done = python(*words, cwd=cwd, environment={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def losses(layout: RunLayout) -> dict[int, float]:
    """Loss by step, exact."""
    return {row["step"]: row["loss"] for row in jsonl.read(layout.metrics) if "loss" in row}


def test_its_configuration_and_its_plan_are_read(old: RunLayout) -> None:
    assert freeze.read_config(old).model.vocab_size == 384
    assert freeze.read_plan(old).steps == STEPS


def test_status_shows_where_it_is(old: RunLayout, tmp_path: Path) -> None:
    (row,) = said("-m", "hpc_llm.status", "runs", "--json", cwd=tmp_path)
    assert (row["name"], row["job_id"], row["state"]) == ("tiny", "4711", "unknown")
    assert (row["step"], row["steps"], row["checkpoint_step"]) == (22, STEPS, CHECKPOINT_STEP)
    assert row["restarts_by_cause"] == {"killed": 1}


def test_compare_shows_it(old: RunLayout, tmp_path: Path) -> None:
    found = said("-m", "hpc_llm.compare", "runs/tiny", "--json", cwd=tmp_path)
    assert found["incomplete"] == [{"name": "tiny", "step": 22, "steps": STEPS}]


def test_its_history_is_understood(old: RunLayout) -> None:
    run = read_record(old).summary
    assert (run.address, run.attempt, run.completed, run.final) == ("4711", 2, False, None)
    first, second = run.history
    assert (first.cause, first.start_step, first.checkpoint_step) == (Cause.KILLED, 0, 10)
    assert first.node == "n1"
    assert (second.cause, second.start_step, second.checkpoint_step) == (Cause.LOST, 10, 20)


@pytest.mark.parametrize(
    ("state", "cancelled_by", "action"),
    [
        ("NODE_FAIL", None, Action.RESUBMIT),
        ("TIMEOUT", None, Action.RESUBMIT),
        ("CANCELLED", 1000, Action.MARK_CANCELLED),
    ],
)
def test_a_watchdog_decides_about_it(
    old: RunLayout, state: str, cancelled_by: int | None, action: Action
) -> None:
    run = read_record(old).summary
    started = run.started_at
    assert started is not None
    life = JobLife(
        "4711",
        4711,
        state,
        cancelled_by,
        0,
        0,
        started - 5,
        started - 1,
        started + 60,
        "n1",
        "tiny",
    )
    job = JobAnswer(asked=True, queued=None, remembered=True, last_life=life)
    assert outside.decide_outside(run, job, started + 120).action is action


def copied_script(layout: RunLayout) -> subprocess.CompletedProcess[str]:
    """What a copy of its job.sbatch runs, outside of Slurm, with today's code in its snapshot."""
    link_atomic(layout.code, os.path.relpath(snapshot.make(layout.path.parent), layout.path))
    command = "python -m hpc_llm.launch.supervisor"
    assert f'exec {command} "$run_dir"' in layout.script.read_text()
    hidden = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        [*command.split(), str(layout.path)],
        cwd=layout.code,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_copied_script_leaves_a_complete_run_alone(old: RunLayout) -> None:
    ledger.Ledger(old.ledger, "supervisor-0002").write("completed", attempt=2, steps=STEPS)
    done = copied_script(old)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_record(old).summary.attempt == 2


def submit(name: str, cwd: Path) -> RunLayout:
    """The same run under a name, trained to its end as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "hpc_llm.submit", *SAME_RUN, f"run.name={name}"],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunLayout(cwd / "runs" / name)


@pytest.mark.slow
def test_it_goes_on_from_its_checkpoint_as_if_there_had_been_one_version(tmp_path: Path) -> None:
    """Bit for bit, by `submit` and by the copied script that queued it.

    Another processor may round otherwise than the one that trained the first steps; then the steps
    that follow are only close.
    """
    old = copy_to(tmp_path / "submitted")
    before = losses(old)
    undisturbed = losses(submit("fresh", tmp_path / "submitted"))
    resumed = losses(submit("tiny", tmp_path / "submitted"))
    assert read_record(old).summary.completed
    (start,) = [item for item in read_record(old).story.attempts if item.number == 3]
    assert start.start_step == CHECKPOINT_STEP
    assert {step: resumed[step] for step in range(1, 21)} == {
        step: before[step] for step in range(1, 21)
    }

    scripted = copy_to(tmp_path / "scripted")
    plan = json.loads(scripted.plan.read_text())
    write_json(scripted.plan, {**plan, "data_directory": str(tmp_path / "scripted" / "data")})
    done = copied_script(scripted)
    assert done.returncode == 0, done.stderr
    assert losses(scripted) == resumed

    assert sorted(resumed) == sorted(undisturbed) == list(range(1, STEPS + 1))
    if all(undisturbed[step] == before[step] for step in range(1, CHECKPOINT_STEP + 1)):
        assert resumed == undisturbed
    else:
        assert resumed == pytest.approx(undisturbed, rel=0.02)
