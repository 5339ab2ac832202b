"""What status says of runs, of the nodes, and of a watchdog that is no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.recovery import node_evidence
from hpc_llm.runs.layout import RootLayout
from hpc_llm.status import __main__ as verb
from hpc_llm.watchdog import __main__, one_pass
from tests.fake_slurm import FakeSlurm, attempt, make_run, write

CONTRACT = (
    "name",
    "job_id",
    "state",
    "cause",
    "step",
    "steps",
    "loss",
    "checkpoint_step",
    "restarts",
)


@pytest.fixture
def said(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = verb.main([str(slurm.root), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_run_says_where_its_time_went_and_why_it_started_again(
    slurm: FakeSlurm, said: Any
) -> None:
    run = make_run(slurm, "one", job="12", state="COMPLETED")
    for number, cause in enumerate(["crash", "crash", "preempted", "completed"], start=1):
        run.attempt(number).mkdir()
        attempt(run, number, 3000 - 700 * number, cause=cause, restart=cause != "completed")
        write(
            run,
            2990 - 700 * number,
            f"train-{number:04d}",
            "checkpointed",
            attempt=number,
            step=1,
            seconds=1.0,
        )
    write(run, 180, "supervisor-0004", "completed", attempt=4)
    ((row,),) = [json.loads(said("--json")[1])]
    assert set(CONTRACT) <= set(row)
    assert (row["state"], row["restarts"]) == ("completed", 3)
    assert row["restarts_by_cause"] == {"crash": 2, "preempted": 1}
    assert 0 < row["ettr"] < row["ettr_scheduled"] <= 1
    assert sum(row["seconds"].values()) == pytest.approx(3600 - 190, abs=5)
    assert "ETTR " in said()[1]


def test_nodes_are_shown_with_their_evidence_and_cleared_by_hand(
    slurm: FakeSlurm, said: Any
) -> None:
    node_evidence.report(slurm.root, "n3", "gpu-fault", run="one", attempt=1)
    node_evidence.report(slurm.root, "n3", "death", run="one", attempt=1)
    (row,) = json.loads(said("--nodes", "--json")[1])
    assert (row["node"], row["score"]) == ("n3", 1.5)
    assert "1 × gpu-fault, 1 × death" in said("--nodes")[1]
    assert "nodes left out: n3" in said()[1]
    assert said("--clear-node", "n3")[0] == 0
    assert json.loads(said("--nodes", "--json")[1]) == []
    code, _, err = said("--clear-node", "n9")
    assert code == 2 and "nothing is known against it" in err


def test_nodes_are_left_out_for_as_long_as_the_runs_themselves_leave_them_out(
    slurm: FakeSlurm, said: Any
) -> None:
    words = ("recovery.node_exclusion_h=72", "recovery.max_excluded_nodes=1")
    make_run(slurm, "waits", *words, job="12", state="PENDING")
    over = make_run(slurm, "over", "recovery.max_excluded_nodes=5", job="13", state="COMPLETED")
    write(over, 10, "supervisor-0001", "completed", attempt=1)
    for node in ("n3", "n4"):
        node_evidence.report(slurm.root, node, "gpu-fault", run="waits", attempt=1)
    rows = json.loads(said("--nodes", "--json")[1])
    assert rows[0]["excluded_until"] == pytest.approx(time.time() + 72 * 3600, abs=60)
    assert (rows[1]["node"], rows[1]["excluded_until"]) == ("n4", None)
    assert "nodes left out: n3 (" in said()[1]
    make_run(slurm, "too", job="14")
    assert "nodes left out: n3, n4 (" in said()[1], "this one leaves eight out, for a day"


@pytest.mark.parametrize(
    ("state", "warned"), [("RUNNING", True), ("PENDING", True), ("COMPLETED", False)]
)
def test_a_watchdog_that_has_died_is_told_of_while_runs_need_it(
    slurm: FakeSlurm, said: Any, state: str, warned: bool
) -> None:
    run = make_run(slurm, "one", job="12", state=state)
    if state == "COMPLETED":
        attempt(run, 1, 3000, cause="completed")
        write(run, 10, "supervisor-0001", "completed", attempt=1)
    one_pass.make_pass(slurm.root)
    assert said()[2] == ""
    os.utime(RootLayout(slurm.root).last_pass, (time.time() - 3600,) * 2)
    assert ("last pass was 60 min ago" in said()[2]) is warned


def test_where_nobody_ever_ran_a_watchdog_nothing_is_said_of_it(
    slurm: FakeSlurm, said: Any
) -> None:
    make_run(slurm, "one", job="12")
    assert said()[2] == ""


def test_a_running_run_says_when_it_will_be_done_and_when_its_job_must_end(
    slurm: FakeSlurm, said: Any
) -> None:
    run = make_run(slurm, "rates/lr=1", "cluster.time_min=120", job="12_0")
    run.plan.write_text(json.dumps({"steps": 100, "nodes": 2, "tokens_per_step": 1000}))
    attempt(run, 1, 3000)
    write(run, 600, "train-0001", "checkpointed", attempt=1, step=30, seconds=1.0)
    rows = [
        {"step": step, "loss": 2.0, "tokens_per_second": 500.0, "mfu": 0.4} for step in range(1, 40)
    ]
    rows[-1]["tokens_per_second"] = 1.0  # a step that waited for something
    run.metrics.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 39, "heldout_loss": 3.0}])
    )
    (row,) = json.loads(said("--json")[1])
    assert (row["run"], row["name"], row["job_id"]) == ("rates/lr=1", "lr=1", "12_0")
    assert row["eta_s"] == pytest.approx((100 - 39) * 1000 / 500)
    assert row["limit_s"] == pytest.approx(7200 - 3500, abs=30)
    assert row["checkpoint_age_s"] == pytest.approx(600, abs=30)
    table = said()[1]
    assert table.split()[0] == "JOB"
    assert (
        "39/100" in table
        and "1h01m" in table
        and "2m" in table
        and "40.0%" in table
        and "10m ago" in table
    )


def test_a_run_that_waits_or_is_over_has_no_limit_and_no_speed_is_made_up(
    slurm: FakeSlurm, said: Any
) -> None:
    make_run(slurm, "one", "cluster.time_min=120", job="12", state="PENDING")
    (row,) = json.loads(said("--json")[1])
    assert (row["eta_s"], row["limit_s"], row["tokens_per_second"], row["checkpoint_age_s"]) == (
        None,
    ) * 4


def test_one_run_is_told_with_its_story_and_its_first_error(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(slurm, "one", job="12")
    run.attempt(1).mkdir()
    attempt(run, 1, 3000, cause="crash", restart=True)
    run.rank_log(1, 0).write_text("2026-01-02 03:04:05,000 rank 0 ERROR ValueError: no\n")
    assert verb.main([str(run.path)]) == 0
    out = capsys.readouterr().out
    assert [word for word in ("submitted", "started", "ended") if word in out] == [
        "submitted",
        "started",
        "ended",
    ]
    assert "cause=crash" in out
    assert "first error of attempt 1: rank 0, ValueError: no" in out


@pytest.mark.parametrize("plan", [None, "[]", '{"ste'])
def test_a_run_without_its_plan_is_passed_over_and_the_others_are_shown(
    slurm: FakeSlurm, said: Any, plan: str | None
) -> None:
    make_run(slurm, "whole", job="12")
    broken = make_run(slurm, "broken", job="13")
    broken.plan.unlink() if plan is None else broken.plan.write_text(plan)
    code, out, err = said("--json")
    assert (code, [row["name"] for row in json.loads(out)]) == (0, ["whole"])
    assert err.startswith(f"status: {broken.path}: passed over, it cannot be read") and (
        plan or "plan.json" in err
    )
    assert len(err.splitlines()) == 1


def test_a_loss_that_is_no_number_is_null_for_scripts(slurm: FakeSlurm, said: Any) -> None:
    run = make_run(slurm, "one", job="12")
    row = {"step": 7, "loss": float("nan"), "tokens_per_second": 500.0, "mfu": float("inf")}
    run.metrics.write_text(json.dumps(row) + "\n")
    (found,) = json.loads(said("--json")[1], parse_constant=pytest.fail)
    assert (found["step"], found["loss"], found["mfu"]) == (7, None, None)


def test_status_asks_slurm_twice_however_many_runs_there_are(slurm: FakeSlurm, said: Any) -> None:
    for number in range(20):
        make_run(slurm, f"run-{number}", job=str(number + 1))
    slurm.said.clear()
    assert len(json.loads(said("--json")[1])) == 20
    assert len(slurm.said) <= 2


def test_watching_shows_it_again_and_refuses_json(
    slurm: FakeSlurm, said: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(slurm, "one", job="12")
    waits = iter([None, KeyboardInterrupt()])

    def wait(_: float) -> None:
        if stop := next(waits):
            raise stop

    monkeypatch.setattr(verb.time, "sleep", wait)
    code, out, _ = said("--watch", "5")
    assert (code, out.count("Ctrl-C ends it"), out.count("JOB")) == (130, 2, 2)
    assert "\x1b" not in out, "a dumb terminal gets no control sequences"
    assert said("--watch", "--json")[0] == 2


@pytest.mark.parametrize("words", [["--nodes"], ["--team"], ["--logs"], ["--clear-node", "n1"]])
def test_what_is_shown_once_cannot_be_watched(
    slurm: FakeSlurm, said: Any, words: list[str]
) -> None:
    make_run(slurm, "one", job="12")
    code, out, err = said(*words, "--watch", "5")
    assert (code, out) == (2, "")
    assert err == (
        f"status: --watch: shows runs again and again, and no {words[0]}; leave out one of "
        "the two\n"
    )


@contextmanager
def unprivileged() -> Iterator[None]:
    """Nobody, if this is root, whom no mode keeps out."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def shared_root(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """A root in a folder that everyone may enter, with two runs."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    mask = os.umask(0o022)
    slurm.root = folder / "runs"
    for number, name in enumerate(["a", "b"]):
        make_run(slurm, f"sweep/{name}", job=f"20_{number}", state="PENDING")
    verb.main([str(slurm.root)])  # imports what nobody may not
    capsys.readouterr()
    yield slurm.root
    os.umask(mask)
    # Its owner, unless that is root, cannot remove what is in a folder that a test has closed.
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("words", [[], ["--nodes"], ["--logs"]])
def test_a_root_that_may_not_be_read_is_a_line(
    shared_root: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for closed in (shared_root, shared_root.parent):
        closed.chmod(0o000)
        with unprivileged():
            assert verb.main([str(shared_root), *words]) == 2
            assert __main__.main([str(shared_root), "--once"]) == 2
        closed.chmod(0o755)
        told = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in told] == ["status", "watchdog"]
        assert all(f"{shared_root}: cannot be read (Permission denied)" in line for line in told)


def test_a_run_that_may_not_be_read_hides_no_other(
    shared_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_pass.make_pass(shared_root)
    node_evidence.report(shared_root, "n3", "gpu-fault", run="sweep/a", attempt=1)
    (evidence,) = RootLayout(shared_root).nodes.iterdir()
    for closed in (shared_root / "sweep" / "a", RootLayout(shared_root).last_pass, evidence):
        closed.chmod(0o000)
    os.utime(RootLayout(shared_root).last_pass, (1, 1))
    with unprivileged():
        assert verb.main([str(shared_root), "--json"]) == 0
    said = capsys.readouterr()
    assert [row["name"] for row in json.loads(said.out)] == ["b"]
    assert "the watchdog's last pass" in said.err


def test_a_story_that_may_not_be_read_is_a_line(
    shared_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shared_root / "sweep" / "a" / "ledger" / "submit.jsonl").chmod(0o000)
    with unprivileged():
        assert verb.main([str(shared_root / "sweep" / "a")]) == 2
    assert "submit.jsonl: cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_queued_run_shows_why_it_waits_when_it_may_start_and_what_helps(
    slurm: FakeSlurm, said: Any
) -> None:
    for job, name, reason in (
        ("12", "waits", "Resources"),
        ("13", "never", "PartitionTimeLimit"),
        ("14", "held", "launch failure limit exceeded requeued held"),
    ):
        make_run(slurm, name, job=job, state="PENDING")
        slurm.put(job, "PENDING", reason=reason, start_time=time.time() + 3600)
    slurm.put("14", "REQUEUE_HOLD", start_time=None)
    rows = {row["name"]: row for row in json.loads(said("--json")[1])}
    assert [row["state"] for row in rows.values()] == ["queued"] * 3
    assert rows["waits"]["reason"] == "Resources"
    assert rows["waits"]["start_s"] == pytest.approx(3600, abs=60)
    assert (rows["waits"]["cause"], rows["waits"]["needs"]) == (None, None)
    assert rows["never"]["cause"] == "PartitionTimeLimit"
    assert "cluster.time_min" in rows["never"]["needs"]
    assert rows["held"]["cause"] == "held"
    out = said()[1]
    assert "queued: waits: Resources, expected to start in" in out
    assert "scancel 13" in out


def test_before_any_step_there_is_no_share_of_productive_time(slurm: FakeSlurm, said: Any) -> None:
    attempt(make_run(slurm, "one", job="12"), 1, 300)
    (row,) = json.loads(said("--json")[1])
    assert (row["ettr"], row["ettr_scheduled"]) == (None, None)
    assert "ETTR 0" not in said()[1]


def test_what_is_left_of_a_budget_is_shown_once_something_is_spent(
    slurm: FakeSlurm, said: Any
) -> None:
    run = make_run(slurm, "one", job="12")
    for number in (1, 2):
        attempt(run, number, 3000 - number, cause="crash", restart=True)
    attempt(run, 3, 100)
    (row,) = json.loads(said("--json")[1])
    assert row["budgets"] == {"max_crashes": 1}
