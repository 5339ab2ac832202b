"""A pass of the watchdog over run directories: what it does, what it costs, and that it may be
killed anywhere.
"""

from __future__ import annotations

import grp
import json
import os
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.recovery import look, node_evidence, outside, run_record
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.slurm import client
from hpc_llm.slurm.client import SlurmUnavailable
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.status import standing
from hpc_llm.watchdog import __main__, census, notifications, one_pass
from hpc_llm.watchdog.pace import Pace
from tests.fake_slurm import (
    FakeSlurm,
    Killed,
    attempt,
    life,
    make_run,
    named,
    write,
)


def acts(slurm: FakeSlurm) -> list[tuple[str, Action]]:
    return [(run.record.layout.name, run.decision.action) for run in one_pass.make_pass(slurm.root)]


def acts_when_sure(slurm: FakeSlurm) -> list[tuple[str, Action]]:
    """As `acts`, if a pass a minute ago has seen the same."""
    looked_at(slurm, 61)
    return acts(slurm)


def looked_at(slurm: FakeSlurm, ago_s: float) -> None:
    """A pass so long ago that found nothing to do."""
    with pytest.MonkeyPatch.context() as clock:
        later(slurm, clock, -ago_s)
        assert acts(slurm) == []


def beat(layout: RunLayout, ago_s: float) -> None:
    layout.heartbeat.touch()
    os.utime(layout.heartbeat, (time.time() - ago_s,) * 2)


def requeued(slurm: FakeSlurm, path: str, job: str) -> RunLayout:
    run = make_run(slurm, path, job=job, state="PENDING")
    attempt(run, 1, 3000)
    slurm.put(job, "PENDING", reason="BeginTime", start_time=time.time() + 100)
    return run


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


def test_a_held_job_is_released_without_the_node_that_failed_to_launch_it(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", job="12", state="PENDING")
    slurm.put("12", "PENDING", reason="launch failed requeued held")
    slurm.ended["12"] = life("12", "NODE_FAIL", "n2,n3")
    slurm.nodes["n3"] = "drained"
    assert acts(slurm) == [("one", Action.RELEASE)]
    assert slurm.excluded["12"] == "n3"
    assert slurm.said.index("update 12") < slurm.said.index("release 12")
    assert named(run, "released")[0].facts["nodes"] == ["n3"]
    assert named(run, "excluded")[0].facts["nodes"] == ["n3"]


def test_a_bad_node_burns_no_retries(slurm: FakeSlurm) -> None:
    words = ("recovery.max_launch_failures=0", "recovery.max_node_failures=1")
    run = make_run(slurm, "one", *words, job="12", state="PENDING")
    slurm.nodes["n3"] = "drained"
    write(run, 600, "watchdog-x", "excluded", nodes=["n3"])
    write(run, 500, "watchdog-x", "released", job="12", cause="launch-failed", nodes=["n3"])
    slurm.put("12", "FAILED")
    attempt(run, 1, 400)
    assert acts(slurm) == [("one", Action.RESUBMIT)]


def test_no_node_is_excluded_where_too_few_would_be_left(slurm: FakeSlurm) -> None:
    slurm.nodes = {"n1": "idle", "n2": "idle"}
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="one", attempt=1)
    make_run(slurm, "one", job="12", state="FAILED")
    assert acts(slurm) == [("one", Action.RESUBMIT)]
    assert slurm.excluded["101"] == ""


def test_a_node_is_given_back_to_a_run_that_could_never_start_without_it(slurm: FakeSlurm) -> None:
    """Two of three nodes are wanted, one is left out, and then another goes down."""
    words = ("cluster.nodes=2", "cluster.exclude=n4")
    run = make_run(slurm, "one", *words, job="12", state="PENDING")
    other = make_run(slurm, "small", "cluster.nodes=1", job="13", state="PENDING")
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    acts(slurm)
    assert slurm.excluded == {"12": "n4,n1", "13": "n1"}
    slurm.nodes["n3"] = "down*"
    for job in ("12", "13"):
        slurm.put(job, "PENDING", reason="ReqNodeNotAvail, UnavailableNodes:n3")
    for _ in range(3):
        acts(slurm)
    assert slurm.excluded == {"12": "n4", "13": "n1"}
    assert [said.facts["nodes"] for said in named(run, "readmitted")] == [["n1"]]
    assert named(other, "readmitted") == []
    said = len(slurm.said)
    acts(slurm)
    assert not any(word.startswith("update") for word in slurm.said[said:])
    slurm.nodes["n3"] = "idle"
    slurm.put("12", "PENDING", reason="Priority")
    acts(slurm)
    assert slurm.excluded["12"] == "n4,n1"
    assert [said.facts["nodes"] for said in named(run, "excluded")] == [["n1"], ["n1"]]


@pytest.mark.parametrize("reason", ["Priority", "ReqNodeNotAvail, UnavailableNodes:n2"])
def test_what_slurm_did_not_hear_is_said_again(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Bad nodes for a job that waits, and their way back where it lacks others."""
    run = make_run(slurm, "one", "cluster.nodes=2", job="12", state="PENDING")
    if reason != "Priority":
        slurm.nodes = {"n1": "idle", "n2": "down", "n3": "idle"}
        write(run, 300, "watchdog-x", "excluded", nodes=["n1"])
    slurm.put("12", "PENDING", reason=reason)
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    told = client.update

    def away(*words: str, **fields: str) -> None:
        raise SlurmUnavailable("away")

    before = len(ledger.read(run.ledger))
    monkeypatch.setattr(client, "update", away)
    acts(slurm)
    assert len(ledger.read(run.ledger)) == before
    monkeypatch.setattr(client, "update", told)
    acts(slurm)
    assert slurm.excluded["12"] == ("n1" if reason == "Priority" else "")


def test_while_a_whole_sweep_lacks_nodes_its_runs_are_looked_at_rarely(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass, "MANY_STARVED", 2)
    for task in range(3):
        run = make_run(slurm, f"s/{task}", "cluster.nodes=2", job=f"20_{task}", state="PENDING")
        slurm.put(f"20_{task}", "PENDING", reason="ReqNodeNotAvail, UnavailableNodes:n2")
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    reads = Counter[str]()
    real = run_record.read_record
    monkeypatch.setattr(
        look, "read_record", lambda layout: (reads.update([layout.name]), real(layout))[1]
    )
    acts(slurm)
    acts(slurm)
    acts(slurm)
    settled = reads.total()
    acts(slurm)
    assert reads.total() == settled
    slurm.nodes = {"n1": "idle", "n2": "down", "n3": "idle"}
    for path, entry in vars(census.load(slurm.root))["runs"].items():
        assert (path, entry.state) == (path, "open")
    monkeypatch.setattr(one_pass, "STARVED_AGAIN_S", 0.0)
    acts(slurm)
    assert named(run, "readmitted")


def test_a_requeued_run_gets_back_the_node_that_it_needs(slurm: FakeSlurm) -> None:
    slurm.nodes = {"n1": "idle", "n2": "idle"}
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="one", attempt=1)
    run = make_run(slurm, "one", "cluster.nodes=2", job="12", state="PENDING")
    attempt(run, 1, 400)
    write(run, 300, "watchdog-x", "excluded", nodes=["n1"])
    slurm.put("12", "PENDING", reason="BeginTime", start_time=time.time() + 121)
    assert acts(slurm) == [("one", Action.EXPEDITE)]
    assert slurm.excluded["12"] == ""
    assert "too few" in named(run, "readmitted")[0].facts["why"]


def test_nothing_is_given_back_while_nobody_knows_which_nodes_are_up(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="one", attempt=1)
    run = make_run(slurm, "one", "cluster.nodes=2", job="12", state="PENDING")
    write(run, 300, "watchdog-x", "excluded", nodes=["n1"])

    def away(*words: str) -> str:
        raise SlurmUnavailable("away")

    monkeypatch.setattr(client, "call", away)
    acts(slurm)
    assert slurm.excluded == {}
    assert named(run, "readmitted") == []


def test_nodes_that_the_user_excludes_stay_excluded(slurm: FakeSlurm) -> None:
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="one", attempt=1)
    make_run(slurm, "one", "cluster.exclude=n4", job="12", state="FAILED")
    slurm.nodes["n5"] = "mixed"
    assert acts(slurm) == [("one", Action.RESUBMIT)]
    assert slurm.excluded["101"] == "n4,n1"


def test_jobs_that_wait_are_spared_a_node_that_goes_bad_meanwhile(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    (tmp_path / "tell").write_text(f'#!/bin/bash\ncd "{tmp_path}"\n{{ cat; echo; }} >>told\n')
    (tmp_path / "tell").chmod(0o755)
    for task in (3, 4):
        make_run(
            slurm,
            f"s/{task}",
            f"recovery.notify=['{tmp_path}/tell']",
            job=f"20_{task}",
            state="PENDING",
        )
    make_run(slurm, "one", "cluster.exclude=n4", job="12", state="PENDING")
    make_run(slurm, "at-work", job="13", state="RUNNING").heartbeat.touch()
    slurm.nodes["n5"] = "idle"
    assert acts(slurm) == []
    assert slurm.excluded == {}
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="at-work", attempt=1)
    for _ in range(3):
        assert acts(slurm) == []
    assert slurm.excluded == {"20_[3,4]": "n1", "12": "n4,n1"}
    assert slurm.said.count("update 12") == 1
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [(event["event"], event["node"]) for event in told] == [("excluded", "n1")]


def test_a_run_that_is_submitted_when_a_node_is_known_to_be_bad_is_spared_it(
    slurm: FakeSlurm,
) -> None:
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    acts(slurm)
    run = make_run(slurm, "one", job="12", state="PENDING")
    write(
        run, 9000, "watchdog-x", "excluded", nodes=["n1"]
    )  # from a job that its user has replaced since
    acts(slurm)
    assert slurm.excluded == {"12": "n1"}
    acts(slurm)
    assert slurm.said.count("update 12") == 1


def test_a_run_that_lost_its_job_during_the_pass_is_passed_over(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user has cancelled it and submitted it again, and Slurm has no room."""
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="another", attempt=1)
    make_run(slurm, "other", "cluster.nodes=1", job="13", state="PENDING")
    run = make_run(slurm, "one", "cluster.nodes=1", job="12", state="PENDING")
    spare = one_pass._exclude_from_pending

    def late(*words: Any) -> None:
        write(run, 0, "submit", "waiting", why="MaxSubmitJobs")
        spare(*words)

    monkeypatch.setattr(one_pass, "_exclude_from_pending", late)
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


def test_what_the_log_says_of_hardware_excludes_the_node_of_that_rank(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", job="12", state="PENDING")
    attempt(run, 1, 3000, cause="crash", first_failed=2, restart=True)
    run.attempt(1).mkdir()
    run.rank_log(1, 2).write_text("NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.\n")
    slurm.put("12", "PENDING", reason="BeginTime", start_time=time.time() + 100)
    assert acts(slurm) == [("one", Action.EXPEDITE)]
    assert slurm.excluded["12"] == "n2"


def test_hangs_of_two_searches_whose_trials_have_one_name_are_two_and_exclude_the_node(
    slurm: FakeSlurm,
) -> None:
    for job, sweep in (("20_0", "adam"), ("30_0", "lion")):
        run = make_run(slurm, f"{sweep}/trial-0000", job=job, state="PENDING")
        attempt(run, 1, 3000, cause="hang", node="n2", restart=True)
        slurm.put(job, "PENDING", reason="BeginTime", start_time=time.time() + 100)
    assert acts(slurm) == [("trial-0000", Action.EXPEDITE)] * 2
    assert {seen.run for seen in node_evidence.read(slurm.root)} == {
        "adam/trial-0000",
        "lion/trial-0000",
    }
    assert slurm.excluded["30_0"] == "n2"


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


# -- killed anywhere
# -----------------------------------------------------------------------------------------------


def held(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="PENDING")
    slurm.put("12", "PENDING", reason="launch failed requeued held")
    slurm.ended["12"] = life("12", "NODE_FAIL", "n3")
    return run


def lost(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="PREEMPTED")
    attempt(run, 1, 3000)
    return run


def lost_task(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "sweep/lr=1", job="20_7", state="PREEMPTED")
    attempt(run, 1, 3000)
    return run


def orphan(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="RUNNING")
    attempt(run, 1, 3000)
    beat(run, 600)
    looked_at(slurm, 61)
    return run


STORIES: dict[str, Callable[[FakeSlurm], RunLayout]] = {
    "held": held,
    "lost": lost,
    "lost task": lost_task,
    "orphan": orphan,
    "requeued": lambda slurm: requeued(slurm, "one", "12"),
}


def later(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock goes on."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def settle(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of another watchdog, a minute apart, until there is nothing to do."""
    for number in range(1, 6):
        with monkeypatch.context() as clock:
            later(slurm, clock, 60 * number)
            one_pass.make_pass(slurm.root)


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_watchdog_killed_over_any_call_of_slurm_loses_nothing_and_doubles_nothing(
    slurm: FakeSlurm, story: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    for number in range(1, 30):
        pristine = dict(slurm.jobs)
        slurm.said.clear()
        slurm.kill_at = (number, side)
        try:
            one_pass.make_pass(slurm.root)
            killed = False
        except Killed:
            killed = True
        slurm.kill_at = None
        settle(slurm, monkeypatch)
        (job,) = slurm.live()
        assert job.reason in ("Priority", "BeginTime")
        assert ledger.read(run.ledger)
        assert latest_job(run) == job.address
        if not killed:
            assert number > 2
            return
        start_over(slurm, run, pristine, story)
    raise AssertionError("a pass without end")


@pytest.mark.parametrize("story", ["lost", "lost task"])
def test_a_job_that_starts_before_its_submission_is_noted_is_not_sent_again(
    slurm: FakeSlurm, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    with (
        killing_writes(3),
        suppress(Killed),
    ):  # its end, the announcement, and then the note that it was sent
        one_pass.make_pass(slurm.root)
    (job,) = slurm.live()
    slurm.put(job.address, "RUNNING", start_time=time.time())
    write(run, 0, "supervisor-0002", "started", attempt=2, checkpoint_step=0, job=job.address)
    settle(slurm, monkeypatch)
    assert [one.address for one in slurm.live()] == [job.address]
    slurm.put(job.address, "CANCELLED")
    settle(slurm, monkeypatch)
    assert slurm.live() == []
    assert named(run, "cancelled")


@pytest.mark.parametrize("story", STORIES)
def test_a_watchdog_killed_over_any_write_loses_nothing_and_doubles_nothing(
    slurm: FakeSlurm, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    for number in range(1, 30):
        pristine = dict(slurm.jobs)
        with killing_writes(number) as count, suppress(Killed):
            one_pass.make_pass(slurm.root)
        settle(slurm, monkeypatch)
        (job,) = slurm.live()
        assert latest_job(run) == job.address
        assert job.reason in ("Priority", "BeginTime")
        if count() < number:
            assert number > 3
            return
        start_over(slurm, run, pristine, story)
    raise AssertionError("a pass without end")


def latest_job(run: RunLayout) -> str:
    sent = [
        event for event in ledger.read(run.ledger) if event.event in ("submitted", "resubmitted")
    ]
    return str(sent[-1].facts["job"])


def start_over(slurm: FakeSlurm, run: RunLayout, jobs: dict[str, Any], story: str) -> None:
    """As it was before the pass."""
    for path in run.ledger.glob("watchdog-*"):
        path.unlink()
    remove(RootLayout(slurm.root).nodes)
    RootLayout(slurm.root).census.unlink(missing_ok=True)
    slurm.jobs = jobs
    slurm.excluded.clear()
    if story == "orphan":
        looked_at(slurm, 61)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def killing_writes(number: int) -> Iterator[Callable[[], int]]:
    """Killed when the `number`th line is to be appended, or file replaced; how many there were."""
    count = 0

    def guard(original: Callable[..., None]) -> Callable[..., None]:
        def write(*words: Any) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            original(*words)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (ledger, "append_line"),
            (node_evidence, "append_line"),
            (census, "write_atomic"),
        ):
            patch.setattr(module, name, guard(getattr(module, name)))
        patch.setattr(one_pass, "write_atomic", guard(one_pass.write_atomic))
        yield lambda: count


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


# -- what a pass costs
# ---------------------------------------------------------------------------------------------

_COUNTED: Counter[str] = Counter()
_COUNTING: list[Path] = []
_EVENTS = (
    "open",
    "os.listdir",
    "os.scandir",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.utime",
    "os.chmod",
    "os.link",
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _COUNTING and event in _EVENTS and str(arguments[0]).startswith(str(_COUNTING[0])):
        _COUNTED[f"{event} {arguments[0]}"] += 1


@pytest.fixture
def operations(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """File-system operations of one pass; Python audits all but stat, which is counted beside."""
    sys.addaudithook(_audit)

    def counting_stat(original: Callable[..., Any]) -> Callable[..., Any]:
        def stat(path: Any, *more: Any, **options: Any) -> Any:
            if _COUNTING:
                _COUNTED[f"stat {path}"] += 1
            return original(path, *more, **options)

        return stat

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counting_stat(getattr(os, name)))

    def make_pass() -> int:
        _COUNTED.clear()
        _COUNTING.append(slurm.root)
        try:
            one_pass.make_pass(slurm.root)
        finally:
            _COUNTING.clear()
        return sum(_COUNTED.values())

    return make_pass


def test_a_pass_costs_two_calls_of_slurm_and_at_most_one_look_at_each_live_run(
    slurm: FakeSlurm, operations: Callable[[], int]
) -> None:
    for number in range(240):
        run = make_run(slurm, f"done-{number}", job=f"{1000 + number}", state="COMPLETED")
        attempt(run, 1, 3000)
        write(run, 10, "supervisor-0001", "completed", attempt=1)
    slurm.jobs.clear()
    for number in range(40):
        run = make_run(slurm, f"sweep/live-{number}", job=f"5000_{number}")
        attempt(run, 1, 3000)
        beat(run, 5)
    for number in range(20):
        make_run(slurm, f"queued-{number}", job=f"{7000 + number}", state="PENDING")
    stale = time.time() - 100
    os.utime(slurm.root / "sweep", (stale, stale))
    slurm.said.clear()
    first = operations()
    assert first > 240
    assert slurm.said == ["queued"]
    slurm.said.clear()
    second = operations()
    assert slurm.said == ["queued"]
    running = sum("heartbeats" in key for key in _COUNTED)
    assert running == 40
    assert second <= 40 + 9, _COUNTED
    slurm.put("7003", "PREEMPTED")
    operations()
    assert [word for word in slurm.said if word.startswith(("queued", "lives"))] == [
        "queued",
        "queued",
    ]


def test_a_new_run_in_a_known_sweep_is_found_and_one_that_is_removed_forgotten(
    slurm: FakeSlurm,
) -> None:
    make_run(slurm, "sweep/a", job="20_0", state="PENDING")
    one_pass.make_pass(slurm.root)
    late = make_run(slurm, "sweep/b", job="21_0", state="NODE_FAIL")
    assert acts(slurm) == [("b", Action.RESUBMIT)]
    remove(late.path)
    assert acts(slurm) == []


def test_a_run_that_was_given_up_and_is_submitted_again_is_looked_after_again(
    slurm: FakeSlurm,
) -> None:
    run = make_run(slurm, "one", job="12", state="FAILED")
    attempt(run, 1, 3000, cause="config-error")
    assert acts(slurm) == []
    write(run, 1, "submit", "submitted", job="13")
    slurm.put("13", "PENDING", name="one", work_dir=str(run.code), reason="Priority")
    assert acts(slurm) == []
    attempt(run, 2, 0.5)
    slurm.put("13", "NODE_FAIL")
    assert acts(slurm) == [("one", Action.RESUBMIT)]


def test_a_census_that_is_damaged_is_made_anew(slurm: FakeSlurm) -> None:
    make_run(slurm, "one", job="12", state="PENDING")
    one_pass.make_pass(slurm.root)
    RootLayout(slurm.root).census.write_text('{"version": 1, "runs": 3}')
    slurm.put("12", "NODE_FAIL")
    assert acts(slurm) == [("one", Action.RESUBMIT)]


# -- telling
# -------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What the user's command was given."""
    (tmp_path / "tell").write_text(f'#!/bin/bash\ncd "{tmp_path}"\n{{ cat; echo; }} >>said\n')
    (tmp_path / "tell").chmod(0o755)
    said = tmp_path / "said"
    return lambda: (
        [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    )


def test_a_user_is_told_once_per_sweep_and_not_once_per_task(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    runs = [
        make_run(
            slurm,
            f"sweep/{n}",
            f"recovery.notify=['{tmp_path}/tell']",
            job=f"20_{n}",
            state="COMPLETED",
        )
        for n in range(5)
    ]
    for number, run in enumerate(runs):
        attempt(run, 1, 3000, cause="diverged" if number < 3 else "completed")
        if number >= 3:
            write(run, 10, "supervisor-0001", "completed", attempt=1)
    for _ in range(3):
        one_pass.make_pass(slurm.root)
    failed, ended = told()
    assert (failed["event"], failed["name"], failed["why"]) == ("failed", "sweep", "diverged")
    assert (ended["event"], ended["runs"], ended["completed"]) == ("ended", 5, 2)


def test_a_sweep_in_several_arrays_is_one_sweep_until_its_user_submits_it_again(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    notify = f"recovery.notify=['{tmp_path}/tell']"
    runs = [
        make_run(slurm, f"sweep/{n}", notify, job=f"{20 + n}_0", state="RUNNING") for n in range(3)
    ]
    late = make_run(slurm, "sweep/3", notify)  # Slurm had no room for it
    write(late, 3600, "submit", "waiting", why="MaxSubmitJobs")
    for run in runs[:2]:
        attempt(run, 1, 3000, cause="diverged")
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed"]
    write(late, 0, "submit", "submitted", job="30_3")
    for run in (runs[2], late):
        attempt(run, 1, 0, cause="diverged")
    slurm.jobs.clear()
    slurm.put("30_3", "FAILED", name="sweep", work_dir=str(slurm.root / "sweep"))
    for _ in range(2):
        one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]
    write(runs[0], 0, "submit", "submitted", job="40_0")
    attempt(runs[0], 2, 0, cause="diverged")
    slurm.put("40_0", "FAILED", name="sweep", work_dir=str(slurm.root / "sweep"))
    RootLayout(slurm.root).census.unlink()  # all are looked at again
    for _ in range(2):
        one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"] * 2


def test_a_message_that_could_not_be_sent_is_sent_by_the_next_pass(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    (tmp_path / "tell").chmod(0o600)
    one_pass.make_pass(slurm.root)
    assert "recovery.notify" in capsys.readouterr().err
    (tmp_path / "tell").chmod(0o755)
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]


@pytest.mark.parametrize("census_now", [None, '{"version": 2, "runs": {}}', "{"])
def test_what_was_told_is_not_told_again_when_the_census_is_made_anew(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    census_now: str | None,
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    one_pass.make_pass(slurm.root)
    before = told()
    path = RootLayout(slurm.root).census
    assert [event["event"] for event in before] == ["failed", "ended"]
    path.unlink() if census_now is None else path.write_text(census_now)
    one_pass.make_pass(slurm.root)
    assert told() == before


def test_what_an_earlier_version_told_is_not_told_again(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """It kept that in its census."""
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    earlier = {"version": 2, "notified": {"failed one 12": time.time()}, "outbox": {}}
    RootLayout(slurm.root).census.write_text(json.dumps(earlier))
    for _ in range(2):
        one_pass.make_pass(slurm.root)
        RootLayout(slurm.root).census.unlink()
    assert [event["event"] for event in told()] == ["ended"]


def test_what_ended_so_long_ago_that_it_may_have_been_told_is_no_news(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    run = make_run(slurm, "one", f"recovery.notify=['{tmp_path}/tell']")
    write(run, 101 * 86400, "submit", "submitted", job="12")
    attempt(run, 1, 100 * 86400, cause="diverged")
    one_pass.make_pass(slurm.root)
    assert told() == []


def test_a_message_survives_a_watchdog_that_is_killed_before_it_saves_its_census(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(notifications, "send", killed)
        one_pass.make_pass(slurm.root)
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]
