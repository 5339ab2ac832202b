"""Runs whose jobs were written by hand (sbatch/), and freeze them when they start, are looked after
like others.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace

import pytest

from hpc_llm.recovery import run_record, slurm_answers
from hpc_llm.recovery.carry_out import unrecorded_job
from hpc_llm.recovery.policy import Action
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import fold
from hpc_llm.submission import cluster, prerequisites
from hpc_llm.supervise import successor
from hpc_llm.watchdog import one_pass
from tests.configs import make_config, planned
from tests.fake_slurm import FakeSlurm, attempt, book, life


@pytest.fixture(params=[("run.sweep=rates",), ()], ids=["a sweep", "no sweep"])
def task(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> RunLayout:
    """The run of 50_2: the third task of an array has frozen it, as the others have theirs, and its
    node fails.
    """
    monkeypatch.setattr(cluster, "examine", planned)
    monkeypatch.setattr(cluster, "examine_again", lambda runs: runs)
    monkeypatch.setattr(prerequisites, "prepare", lambda _: None)
    for index, rate in enumerate(("1e-4", "2e-4", "4e-4")):
        for name, value in (("JOB_ID", 60 + index), ("ARRAY_JOB_ID", 50), ("ARRAY_TASK_ID", index)):
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        words = (
            f"run.root={slurm.root}",
            *request.param,
            f"run.name='lr={rate}'",
            f"optim.lr={rate}",
        )
        run = cluster.freeze_here(make_config("cluster=local-slurm", *words), [])
    attempt(run, 1, 3000)
    return run


def test_a_watchdog_submits_a_task_again_that_was_submitted_by_hand(
    slurm: FakeSlurm, task: RunLayout
) -> None:
    slurm.put("50_2", "NODE_FAIL", name="rates", work_dir="/home/me", start_time=time.time() - 3500)
    slurm.ended["50_2"] = life("50_2", "NODE_FAIL")
    (run,) = [run for run in one_pass.make_pass(slurm.root) if run.record.layout == task]
    assert run.decision.action is Action.RESUBMIT
    submitted_as(slurm, task, "101_2")


def test_a_successor_of_a_task_that_was_submitted_by_hand_is_queued(
    slurm: FakeSlurm, task: RunLayout
) -> None:
    successor.queue_next(run_record.read_record(task), "50_2", book(task, "successor-50_2"))
    submitted_as(slurm, task, "101_2")


def submitted_as(slurm: FakeSlurm, run: RunLayout, address: str) -> None:
    """With a script that has this run at this index, and so that who dies over it finds the job
    again.
    """
    assert [job.address for job in slurm.live()] == [address]
    lines = run.script.read_text().splitlines()
    assert "#SBATCH --array=2" in lines
    assert f"  [2]={shlex.quote(str(run.path))}" in lines
    assert (
        unrecorded_job(
            replace(run_record.read_record(run), story=fold([])), slurm_answers.SlurmQueue(), "2"
        )
        == address
    )
