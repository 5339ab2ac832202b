"""A job that bears a run's number is the run's only if it was submitted for it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import look_at_root
from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.run_record import read_record
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.records import JobLife
from hpc_llm.submission import send
from hpc_llm.watchdog.one_pass import make_pass
from tests.fake_slurm import FakeSlurm, attempt, life, make_run, named, write

ELSEWHERE = "/scratch/else/where"


def decision(slurm: FakeSlurm) -> tuple[Action, str]:
    (seen,) = look_at_root(slurm.root)
    return seen.decision.action, seen.decision.why


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "CANCELLED", "FAILED"])
@pytest.mark.parametrize("path", ["one", "sweep/one"])
@pytest.mark.parametrize("name", ["analysis", "one", "sweep"])
def test_a_strangers_job_under_the_runs_number_is_never_touched(
    slurm: FakeSlurm, path: str, name: str, state: str
) -> None:
    address = "7_3" if "/" in path else "7"
    layout = make_run(slurm, path, job=address)
    attempt(layout, 1, 3000)
    slurm.put(address, state, work_dir=ELSEWHERE, name=name)
    action, why = decision(slurm)
    assert action is Action.RESUBMIT
    assert f"that of another one, {name} in {ELSEWHERE}" in why
    before = slurm.jobs[address]
    for _ in range(3):
        make_pass(slurm.root)
    assert slurm.jobs[address] == before
    assert not [call for call in slurm.said if call.split()[-1] == address]
    assert len(named(layout, "resubmitted")) == 1


def test_a_job_that_its_user_renamed_is_the_runs_still(slurm: FakeSlurm) -> None:
    layout = make_run(slurm, "one", job="7")
    attempt(layout, 1, 60)
    slurm.put("7", "RUNNING", name="important", start_time=time.time() - 70)
    assert decision(slurm)[0] is Action.NOTHING


def test_a_folder_that_is_reached_by_a_link_is_the_same(slurm: FakeSlurm, tmp_path: Path) -> None:
    layout = make_run(slurm, "one", job="7")
    attempt(layout, 1, 60)
    link = tmp_path / "link"
    link.symlink_to(slurm.root)
    slurm.put("7", "RUNNING", work_dir=str(link / "one" / "code"), start_time=time.time() - 70)
    assert decision(slurm)[0] is Action.NOTHING


@pytest.mark.parametrize("known", ["name", "nothing"])
def test_a_job_whose_script_was_written_by_hand_starts_anywhere(
    slurm: FakeSlurm, known: str
) -> None:
    layout = make_run(slurm, "one")
    facts = {"attempt": 1, "checkpoint_step": 0, "nodes": ["n1"], "job": "7"}
    if known == "name":
        facts["job_name"] = "by-hand"
    write(layout, 60, "supervisor-0001", "started", **facts)
    began = time.time() - 70
    slurm.put("7", "RUNNING", name="by-hand", work_dir="/home/me", start_time=began)
    assert decision(slurm)[0] is Action.NOTHING
    slurm.put("7", "RUNNING", name="analysis", work_dir="/home/me", start_time=began - 3000)
    slurm.ended["7"] = life("7", "NODE_FAIL")
    expected = Action.RESUBMIT if known == "name" else Action.NOTHING
    assert decision(slurm)[0] is expected


def cancelled(**changes: object) -> JobLife:
    return replace(life("7", "CANCELLED"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strangers",
    [
        cancelled(work_dir=ELSEWHERE, name="one"),
        cancelled(work_dir="", name="analysis"),
        cancelled(end_time=time.time() - 5 * 86400),
    ],
)
def test_how_a_strangers_job_ended_says_nothing_of_the_run(
    slurm: FakeSlurm, strangers: JobLife
) -> None:
    layout = make_run(slurm, "one", job="7")
    attempt(layout, 1, 3000)
    del slurm.jobs["7"]
    slurm.ended["7"] = strangers
    assert decision(slurm)[0] is Action.RESUBMIT
    slurm.ended["7"] = cancelled(work_dir=str(RunLayout(slurm.root / "one").code))
    assert decision(slurm)[0] is Action.MARK_CANCELLED


def started(layout: RunLayout, number: int, ago_s: float, job: str, restarts: int) -> None:
    facts = {"checkpoint_step": 0, "nodes": ["n1"], "job": job, "restarts": restarts}
    write(layout, ago_s, f"supervisor-{number:04d}", "started", attempt=number, **facts)


@pytest.mark.parametrize("clock_s", [-300, 300])
@pytest.mark.parametrize("shown", [True, False], ids=["in squeue", "in sacct alone"])
@pytest.mark.parametrize(("restarts", "cause"), [(1, Cause.NODE_FAILURE), (0, Cause.LAUNCH_FAILED)])
def test_an_attempt_began_in_the_life_whose_number_it_tells_whatever_its_clock_says(
    slurm: FakeSlurm, restarts: int, cause: Cause, shown: bool, clock_s: float
) -> None:
    layout = make_run(slurm, "one", job="7")
    now = time.time()
    folder = str(layout.code)
    first = replace(life("7", "PREEMPTED"), start_time=now - 3000, end_time=now - 2000)
    last = replace(life("7", "NODE_FAIL"), start_time=now - 1800, end_time=now - 60)
    slurm.lives_of["7"] = [replace(one, work_dir=folder) for one in (first, last)]
    started(layout, 1, 1700 + clock_s, "7", restarts)
    if shown:
        slurm.put("7", "NODE_FAIL", start_time=now - 1800)
    else:
        del slurm.jobs["7"]
    (seen,) = look_at_root(slurm.root)
    assert seen.decision.cause is cause


@pytest.mark.parametrize("clock_s", [-900, 90, 900])
@pytest.mark.parametrize("word", ["given-up", "cancelled", "halved"])
def test_a_final_word_is_of_the_job_that_it_was_said_of_whatever_its_clock_says(
    slurm: FakeSlurm, word: str, clock_s: float
) -> None:
    layout = make_run(slurm, "one", job="7")
    started(layout, 1, 3000, "7", 0)
    write(layout, 600 + clock_s, "watchdog-x", word, job="7", after_attempt=1)
    assert read_record(layout).summary.over
    submitted(layout, 400, "8")
    assert not read_record(layout).summary.over
    write(layout, 200 + clock_s, "watchdog-x", word, job="8", after_attempt=1)
    assert read_record(layout).summary.over
    submitted(layout, 100, "9")
    started(layout, 2, 90 + clock_s, "9", 0)
    assert not read_record(layout).summary.over


@pytest.mark.parametrize("clock_s", [-900, 0, 900])
def test_an_attempts_last_end_does_not_end_what_was_submitted_after_it(
    slurm: FakeSlurm, clock_s: float
) -> None:
    layout = make_run(slurm, "one", job="7")
    failed(layout, 1, 600 + clock_s, "7")
    assert read_record(layout).summary.over
    submitted(layout, 500, "8")
    assert not read_record(layout).summary.over
    failed(layout, 2, 400 + clock_s, "8")
    assert read_record(layout).summary.over


def failed(layout: RunLayout, number: int, ago_s: float, job: str) -> None:
    started(layout, number, ago_s, job, 0)
    end = {"attempt": number, "cause": "config-error", "gpu_hours": 0.1, "restart": False}
    write(layout, ago_s - 10, f"supervisor-{number:04d}", "ended", **end)


def submitted(layout: RunLayout, ago_s: float, job: str) -> None:
    send.record_submitted({job: layout}, time.time() - ago_s)


def test_a_job_of_another_cluster_is_neither_gone_nor_acted_on(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make_run(slurm, "one")
    attempt(layout, 1, 3000)
    write(layout, 4000, "submit", "submitted", job="7", clusters="gpu")
    assert decision(slurm)[0] is Action.NOTHING
    make_pass(slurm.root)
    assert "one: submitted to another cluster: export SLURM_CLUSTERS=gpu" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_CLUSTERS", "gpu")
    assert decision(slurm)[0] is Action.RESUBMIT
    monkeypatch.delenv("SLURM_CLUSTERS")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "gpu")  # in a job there
    assert decision(slurm)[0] is Action.RESUBMIT


def test_a_run_that_named_no_cluster_is_not_looked_for_in_one(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_run(slurm, "one")
    attempt(layout, 1, 3000)
    write(layout, 4000, "submit", "submitted", job="7", clusters=None)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "main")
    assert decision(slurm)[0] is Action.RESUBMIT
    monkeypatch.setenv("SLURM_CLUSTERS", "gpu")
    assert decision(slurm)[0] is Action.NOTHING
