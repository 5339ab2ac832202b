"""What a pass of the watchdog does about each run."""

from __future__ import annotations

import grp
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_llm.recovery import node_evidence, outside
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RootLayout
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.status import standing
from hpc_llm.watchdog import __main__, one_pass
from hpc_llm.watchdog.pace import Pace
from tests.fake_slurm import (
    FakeSlurm,
    attempt,
    life,
    make_run,
    named,
    write,
)
from tests.watchdog.passes import acts, acts_when_sure, beat, later, requeued


def test_a_requeued_job_is_expedited_once_and_its_end_is_told(slurm: FakeSlurm) -> None:
    run = requeued(slurm, "one", "12")
    slurm.ended["12"] = life("12", "PREEMPTED")
    assert acts(slurm) == [("one", Action.EXPEDITE)]
    assert acts(slurm) == []
    (end,) = named(run, "ended")
    assert (end.facts["cause"], end.facts["restart"]) == ("preempted", True)
    assert end.facts["gpu_hours"] == pytest.approx((3000 - 60) / 3600 * 4, rel=0.01)
    assert named(run, "expedited")[0].facts["job"] == "12"


def test_a_lost_job_is_submitted_again_with_its_own_script_and_task(slurm: FakeSlurm) -> None:
    single = make_run(slurm, "one", job="12", state="PREEMPTED")
    task = make_run(slurm, "sweep/lr=1", job="20_7", state="NODE_FAIL")
    for run in (single, task):
        attempt(run, 1, 3000)
    assert dict(acts(slurm)) == {"one": Action.RESUBMIT, "lr=1": Action.RESUBMIT}
    assert {job.address for job in slurm.live()} == {"101", "102_7"}
    assert named(task, "resubmitted")[0].facts["job"] == "102_7"
    assert acts(slurm) == []


def test_a_job_that_never_begins_is_not_sent_for_ever(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", "recovery.max_launch_failures=2", job="12", state="FAILED")
    for _ in range(6):
        acts(slurm)
        for job in slurm.live():
            slurm.put(job.address, "FAILED")
    assert len(named(run, "resubmitted")) == 2
    assert (
        "3 launch failures (recovery.max_launch_failures=2)"
        in named(run, "given-up")[0].facts["why"]
    )


def test_a_requeued_job_in_which_nobody_begins_is_not_requeued_for_ever(slurm: FakeSlurm) -> None:
    """The attempt of an earlier life of the same job says nothing of the lives after it."""
    run = make_run(slurm, "one", "recovery.max_launch_failures=2", job="12", state="RUNNING")
    attempt(run, 1, 3000)
    beat(run, 600)
    assert acts_when_sure(slurm) == [("one", Action.REQUEUE)]
    assert named(run, "ended")[0].facts["cause"] == "orphaned"
    for ago_s in range(900, 200, -100):
        slurm.put(
            "12",
            "PENDING" if not slurm.live() else "RUNNING",
            start_time=time.time() - ago_s,
            node_list="n1,n2",
        )
        if named(run, "given-up"):
            break
        acts_when_sure(slurm)
    assert len(named(run, "requeued")) == 1 + 2
    assert (
        "3 launch failures (recovery.max_launch_failures=2)"
        in named(run, "given-up")[0].facts["why"]
    )
    assert {seen.node for seen in node_evidence.read(slurm.root)} == {"n1", "n2"}
    hours = [
        said.facts["gpu_hours"] for said in named(run, "requeued")[1:]
    ]  # of two nodes with two GPUs
    assert hours == [pytest.approx(ago_s / 3600 * 4, rel=0.02) for ago_s in (900, 800)]


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_node_that_fails_before_every_start_is_charged_once_per_life(
    slurm: FakeSlurm, attempts: int
) -> None:
    run = make_run(slurm, "one", "recovery.max_node_failures=2", job="12", state="PENDING")
    for number in range(attempts):
        attempt(run, number + 1, 3400)
    slurm.nodes["n3"] = "drained"
    for number in range(6):
        failed = replace(
            life("12", "NODE_FAIL", "n3,n4"), start_time=time.time() - 3000 + 300 * number
        )
        slurm.ended["12"] = failed
        for _ in range(2):  # also where Slurm did not take the wait away the first time
            slurm.put("12", "PENDING", reason="BeginTime", start_time=time.time() + 100)
            acts(slurm)
    charged = [said.facts["nodes"] for said in named(run, "expedited") if "cause" in said.facts]
    assert charged == [["n3"]] * 3
    assert slurm.excluded["12"] == "n3"
    assert (
        "3 node failures" in named(run, "given-up")[0].facts["why"]
    )  # it is left out: no matter of this run's


def test_a_file_system_that_stood_still_makes_no_orphans(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No supervisor could beat and no watchdog look; the watchdog is the first that is served
    again.
    """
    runs = [
        make_run(slurm, name, job=job, state="RUNNING")
        for name, job in (("one", "12"), ("two", "13"))
    ]
    for run in runs:
        attempt(run, 1, 3000)
        beat(run, 250)
    stale = time.time() - 250
    RootLayout(slurm.root).last_pass.touch()
    os.utime(RootLayout(slurm.root).last_pass, (stale, stale))
    assert acts(slurm) == []
    beat(runs[0], -55)  # this one lives
    later(slurm, monkeypatch, 61)
    assert acts(slurm) == [("two", Action.REQUEUE)]


def test_a_look_that_took_long_counts_from_its_end(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen the silence before the file system stood still, and ends after that."""
    beat(run := make_run(slurm, "one", job="12", state="RUNNING"), 250)
    attempt(run, 1, 3000)
    queued = slurm.queued

    def slow() -> list[QueuedJob]:
        later(slurm, monkeypatch, 100)
        return queued()

    with monkeypatch.context() as stalled:
        stalled.setattr(slurm, "queued", slow)
        assert acts(slurm) == []
    assert acts(slurm) == []
    later(slurm, monkeypatch, 61)
    assert acts(slurm) == [("one", Action.REQUEUE)]


def test_an_attempt_that_is_just_starting_has_begun_whatever_the_clocks_say(
    slurm: FakeSlurm,
) -> None:
    """The node's clock is behind the controller's and the watchdog's."""
    run = make_run(slurm, "one", job="12", state="RUNNING")
    attempt(run, 1, 3000, cause="orphaned")
    write(run, 400, "watchdog-x", "requeued", job="12", after_attempt=1)
    slurm.put("12", "RUNNING", start_time=time.time() - 395)
    attempt(run, 2, 403)
    beat(run, 300)
    assert acts_when_sure(slurm) == [("one", Action.REQUEUE)]
    assert named(run, "requeued")[-1].facts.get("cause") is None
    assert named(run, "ended")[-1].facts["cause"] == "orphaned"


def test_a_run_that_lost_its_job_during_the_pass_is_passed_over(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user has cancelled it and submitted it again, and Slurm has no room."""
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    make_run(slurm, "other", "cluster.nodes=1", job="13", state="PENDING")
    run = make_run(slurm, "one", "cluster.nodes=1", job="12", state="PENDING")
    volume = node_evidence.volume

    def late(root: Path) -> int:
        """Asked for after all decisions, and before waiting jobs are kept off bad nodes."""
        write(run, 0, "submit", "waiting", why="MaxSubmitJobs")
        return volume(root)

    monkeypatch.setattr(node_evidence, "volume", late)
    assert acts(slurm) == []
    assert slurm.excluded == {"13": "n1"}


def test_a_run_that_waits_for_room_has_no_claim_on_the_job_that_it_had(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "s/one", "run.sweep=s", job="20_7", state="FAILED")
    attempt(run, 1, 3000)
    write(run, 60, "submit", "waiting", why="AssocMaxSubmitJobLimit")
    assert acts(slurm) == []  # not submitted again as task 7 of whatever its script is now
    (row,) = standing.status_of(slurm.root).rows
    assert (row["state"], row["cause"], row["job_id"]) == ("queued", "no-room", None)
    write(run, 30, "submit", "submitted", job="21_0")
    assert standing.status_of(slurm.root).rows[0]["job_id"] == "21_0"


def test_losers_of_a_rung_are_stopped_and_told_why_and_their_slots_are_free(
    slurm: FakeSlurm,
) -> None:
    words = ("halving.rungs=[100steps]", "train.eval_every=100steps", "train.duration=300steps")
    runs = {n: make_run(slurm, f"s/{n}", "run.sweep=s", *words, job=f"20_{n}") for n in (3, 4, 5)}
    for run in runs.values():
        attempt(run, 1, 100)
        run.heartbeat.touch()
    assert acts(slurm) == []
    for number, loss in ((3, 2.5), (4, 2.1)):
        write(runs[number], 50, "supervisor-0001", "rung", rung=0, step=100, heldout_loss=loss)
    assert acts(slurm) == []  # two of three may go on
    write(runs[5], 40, "supervisor-0001", "rung", rung=0, step=100, heldout_loss=2.3)
    assert acts(slurm) == [("3", Action.FREE)]
    assert [job.address for job in slurm.live()] == ["20_4", "20_5"]
    (said,) = named(runs[3], "halved")
    assert said.facts["why"] == "rung 1: held-out loss 2.5000, 2 of 3 runs are better"
    assert acts(slurm) == []
    assert standing.status_of(slurm.root).rows[0]["state"] == "stopped"


def test_what_its_user_cancels_stays_cancelled_whatever_comes(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", job="12", state="CANCELLED")
    attempt(run, 1, 3000)
    assert acts(slurm) == [("one", Action.MARK_CANCELLED)]
    slurm.jobs.clear()
    slurm.ended["12"] = life("12", "NODE_FAIL")
    assert acts(slurm) == []
    assert slurm.live() == []


def test_the_site_that_queues_a_failed_run_again_by_its_exit_code_is_understood(
    slurm: FakeSlurm,
) -> None:
    run = make_run(slurm, "one", job="12", state="PENDING")
    attempt(run, 1, 3000, cause="config-error")
    slurm.put("12", "PENDING", reason="BeginTime", start_time=time.time() + 100)
    assert acts(slurm) == []
    slurm.requeue_exit = "1,5-9"
    assert acts(slurm) == [("one", Action.WITHDRAW)]
    assert slurm.live() == []


@pytest.mark.parametrize("cause", ["time-limit", "node-failure", "preempted"])
def test_an_attempt_that_lost_its_allocation_ends_no_run(slurm: FakeSlurm, cause: str) -> None:
    run = make_run(slurm, "one", job="12", state="COMPLETED")
    attempt(run, 1, 3000, cause=cause, restart=False, checkpoint_step=20)
    assert acts(slurm) == [("one", Action.RESUBMIT)]


def test_a_queue_that_cannot_be_asked_means_nothing_is_done(slurm: FakeSlurm) -> None:
    make_run(slurm, "one", job="12", state="NODE_FAIL")
    slurm.down = True
    assert acts(slurm) == []
    assert RootLayout(slurm.root).last_pass.exists()


def test_a_refusal_is_written_down_and_not_asked_for_again_at_once(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_llm.slurm import client

    run = make_run(slurm, "one", job="12", state="NODE_FAIL")

    def no(*_: object) -> int:
        raise client.SlurmRefused("QOSMaxSubmitJobPerUserLimit")

    monkeypatch.setattr(client, "submit", no)
    for _ in range(3):
        acts(slurm)
    (refused,) = named(run, "refused")
    assert "QOSMaxSubmit" in refused.facts["why"]


def test_a_damaged_run_keeps_nobody_from_the_others(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(slurm, "bad", job="11", state="NODE_FAIL").config.write_text("{")
    make_run(slurm, "good", job="12", state="NODE_FAIL")
    assert acts(slurm) == [("good", Action.RESUBMIT)]
    assert "bad: passed over" in capsys.readouterr().err


@pytest.mark.parametrize("umask", [0o077, 0o022])
@pytest.mark.parametrize("group", [None, grp.getgrgid(os.getgid()).gr_name])
def test_what_a_watchdog_writes_down_is_for_the_runs_group_to_read(
    group: str | None, umask: int, slurm: FakeSlurm
) -> None:
    run = make_run(slurm, "one", f"run.group={group or 'null'}", job="12", state="NODE_FAIL")
    before = os.umask(umask)
    try:
        assert acts(slurm) == [("one", Action.RESUBMIT)]
    finally:
        assert os.umask(before) == umask
    (book,) = run.ledger.glob("watchdog-*")
    assert stat.S_IMODE(book.stat().st_mode) == (0o640 if group else 0o600)


def test_two_watchdogs_take_turns(slurm: FakeSlurm) -> None:
    with one_pass.only_watchdog(slurm.root) as first, one_pass.only_watchdog(slurm.root) as second:
        assert (first, second) == (True, False)
    with one_pass.only_watchdog(slurm.root) as again:
        assert again


def test_a_full_disk_does_not_end_the_watchdog(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(slurm, "one", job="12", state="NODE_FAIL")
    passes: list[Pace] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def wait(pace: Pace) -> None:
        passes.append(pace)
        if len(passes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "append_line", full)
    monkeypatch.setattr(one_pass, "write_atomic", full)
    monkeypatch.setattr(Pace, "wait", wait)
    assert __main__.main([str(slurm.root)]) == 130
    assert len(passes) == 2
    assert "No space left" in capsys.readouterr().err
    assert slurm.live() == []  # nothing was sent that could not be announced
    assert [event.event for event in ledger.read(run.ledger)] == ["submitted"]


@pytest.mark.parametrize("words", [[], ["--once"]])
def test_a_bug_is_told_and_does_not_end_the_watchdog(
    words: list[str],
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(slurm, "one", job="12", state="NODE_FAIL")
    decide = outside.decide_outside
    passes = list[Pace]()

    def wrong(*_: object) -> None:
        raise AssertionError("that cannot be")

    def wait(pace: Pace) -> None:
        passes.append(pace)
        monkeypatch.setattr(outside, "decide_outside", decide)
        if len(passes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(outside, "decide_outside", wrong)
    monkeypatch.setattr(Pace, "wait", wait)
    assert __main__.main([str(slurm.root), *words]) == (1 if words else 130)
    said = capsys.readouterr()
    assert "AssertionError: that cannot be" in said.err
    assert ("one: resubmitted" in said.out) == (not words)
