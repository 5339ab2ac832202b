"""What status says of runs, of the nodes, and of a watchdog that is no more."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from fake_slurm import FakeSlurm, attempt, make_run, slurm, write

from hpc_llm import status as verb
from hpc_llm.recovery import loop, nodes
from hpc_llm.runs.layout import RootLayout

__all__ = ["slurm"]
CONTRACT = ("name", "job_id", "state", "cause", "step", "steps", "loss", "checkpoint_step", "restarts")


@pytest.fixture
def said(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = verb.main([str(slurm.root), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_run_says_where_its_time_went_and_why_it_started_again(slurm: FakeSlurm, said: Any) -> None:
    run = make_run(slurm, "one", job="12", state="COMPLETED")
    for number, cause in enumerate(["crash", "crash", "preempted", "completed"], start=1):
        run.attempt(number).mkdir()
        attempt(run, number, 3000 - 700 * number, cause=cause, restart=cause != "completed")
        write(run, 2990 - 700 * number, f"train-{number:04d}", "checkpointed", attempt=number, step=1, seconds=1.0)
    write(run, 180, "supervisor-0004", "completed", attempt=4)
    ((row,),) = [json.loads(said("--json")[1])]
    assert set(CONTRACT) <= set(row)
    assert (row["state"], row["restarts"]) == ("completed", 3)
    assert row["restarts_by_cause"] == {"crash": 2, "preempted": 1}
    assert 0 < row["ettr"] < row["ettr_scheduled"] <= 1
    assert sum(row["seconds"].values()) == pytest.approx(3600 - 190, abs=5)
    assert "ETTR " in said()[1]


def test_nodes_are_shown_with_their_evidence_and_cleared_by_hand(slurm: FakeSlurm, said: Any) -> None:
    nodes.report(slurm.root, "n3", "gpu-fault", run="one", attempt=1)
    nodes.report(slurm.root, "n3", "death", run="one", attempt=1)
    (row,) = json.loads(said("--nodes", "--json")[1])
    assert (row["node"], row["score"]) == ("n3", 1.5)
    assert "1 × gpu-fault, 1 × death" in said("--nodes")[1]
    assert "nodes left out: n3" in said()[1]
    assert said("--clear-node", "n3")[0] == 0
    assert json.loads(said("--nodes", "--json")[1]) == []
    code, _, err = said("--clear-node", "n9")
    assert code == 2 and "nothing is known against it" in err


@pytest.mark.parametrize(("state", "warned"), [("RUNNING", True), ("PENDING", True), ("COMPLETED", False)])
def test_a_watchdog_that_has_died_is_told_of_while_runs_need_it(
    slurm: FakeSlurm, said: Any, state: str, warned: bool
) -> None:
    run = make_run(slurm, "one", job="12", state=state)
    if state == "COMPLETED":
        attempt(run, 1, 3000, cause="completed")
        write(run, 10, "supervisor-0001", "completed", attempt=1)
    loop.one_pass(slurm.root)
    assert said()[2] == ""
    os.utime(RootLayout(slurm.root).last_pass, (time.time() - 3600,) * 2)
    assert ("last pass was 60 min ago" in said()[2]) is warned


def test_where_nobody_ever_ran_a_watchdog_nothing_is_said_of_it(slurm: FakeSlurm, said: Any) -> None:
    make_run(slurm, "one", job="12")
    assert said()[2] == ""
