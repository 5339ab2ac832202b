"""Jobs are kept off bad nodes, as long as enough others are up."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from hpc_llm.recovery import look, node_evidence, run_record
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import ledger
from hpc_llm.slurm import client
from hpc_llm.slurm.client import SlurmUnavailable
from hpc_llm.watchdog import census, one_pass
from tests.fake_slurm import (
    FakeSlurm,
    attempt,
    life,
    make_run,
    named,
    write,
)
from tests.watchdog.passes import acts


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
