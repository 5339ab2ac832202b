"""What Slurm did before any pass, or what a person did: accounting is asked, its user told."""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.run_record import read_record
from hpc_llm.slurm import client
from hpc_llm.watchdog import one_pass
from tests.fake_slurm import FakeSlurm, attempt, life, make_run, named, write
from tests.watchdog.passes import acts

OWN_NAME = pwd.getpwuid(os.getuid()).pw_name
Told = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """What the user's command was given."""
    (tmp_path / "tell").write_text(f'#!/bin/bash\n{{ cat; echo; }} >>"{tmp_path}/said"\n')
    (tmp_path / "tell").chmod(0o755)
    (tmp_path / "said").touch()
    return lambda: [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]


def notify(tmp_path: Path) -> str:
    return f"recovery.notify=['{tmp_path}/tell']"


@pytest.mark.parametrize(
    ("who", "action", "events"),
    [
        (os.getuid(), Action.MARK_CANCELLED, []),
        (OWN_NAME, Action.MARK_CANCELLED, []),
        (os.getuid() + 1, Action.RESUBMIT, ["cancelled"]),
        ("slurm-operator", Action.RESUBMIT, ["cancelled"]),
        (None, Action.MARK_CANCELLED, ["cancelled"]),  # sacct does not say
    ],
)
def test_only_its_own_users_scancel_is_final(
    slurm: FakeSlurm, told: Told, tmp_path: Path, who: Any, action: Action, events: list[str]
) -> None:
    run = make_run(slurm, "one", notify(tmp_path), job="12", state="CANCELLED")
    attempt(run, 1, 3000)
    slurm.ended["12"] = replace(life("12", "CANCELLED"), cancelled_by=who)
    assert acts(slurm) == [("one", action)]
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told() if event["event"] != "ended"] == events


def test_a_job_that_an_administrator_cancelled_may_be_held(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", "recovery.on_admin_cancel=hold", job="12", state="CANCELLED")
    attempt(run, 1, 3000)
    slurm.ended["12"] = replace(life("12", "CANCELLED"), cancelled_by=os.getuid() + 1)
    options: list[str] = []
    submit = client.submit

    def noted(script: Path, *given: str) -> int:
        options.extend(given)
        return submit(script, *(word for word in given if word != "--hold"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "submit", noted)
        assert acts(slurm) == [("one", Action.RESUBMIT)]
    assert "--hold" in options
    assert [end.cause.value for end in read_record(run).summary.history] == ["admin-cancel"]


def test_what_was_cancelled_in_the_queue_by_others_counts_as_such(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", job="12", state="CANCELLED")
    slurm.ended["12"] = replace(
        life("12", "CANCELLED"), cancelled_by=os.getuid() + 1, start_time=None
    )
    assert acts(slurm) == [("one", Action.RESUBMIT)]
    assert [end.cause.value for end in read_record(run).summary.history] == ["admin-cancel"]


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (client.SlurmRefused("sacct: Slurm accounting storage is disabled"), True),
        (client.SlurmUnavailable("sacct: problem talking to the database"), False),
    ],
)
def test_who_cancelled_is_waited_for_only_where_somebody_will_tell(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, error: Exception, action: bool
) -> None:
    attempt(make_run(slurm, "one", job="12", state="CANCELLED"), 1, 3000)

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(client, "lives", fails)
    assert acts(slurm) == ([("one", Action.MARK_CANCELLED)] if action else [])


def test_ends_that_slurm_followed_before_any_pass_are_asked_for_once(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(slurm, "one", job="12", state="RUNNING")
    for number in (1, 2):
        facts = {"attempt": number, "job": "12", "restarts": number - 1, "checkpoint_step": 0}
        write(run, 3000 - 600 * number, f"supervisor-{number:04d}", "started", **facts)
    ended = replace(life("12", "PREEMPTED"), work_dir=str(run.code))
    asked = []

    def lives(*_: Any, **__: Any) -> Any:
        asked.append(1)
        return [ended]

    monkeypatch.setattr(client, "lives", lives)
    for _ in range(2):
        one_pass.make_pass(slurm.root)
        slurm.put("12", "RUNNING", start_time=time.time())
    (end,) = named(run, "ended")
    assert (end.facts["attempt"], end.facts["cause"]) == (1, "preempted")
    assert len(asked) == 1
    causes = [end.cause.value for end in read_record(run).summary.history]
    assert causes == ["preempted", "lost"]


def test_a_job_that_never_starts_is_told_once_for_each_reason(
    slurm: FakeSlurm, told: Told, tmp_path: Path
) -> None:
    make_run(slurm, "one", notify(tmp_path), job="12", state="PENDING")
    for reason in ("Priority", "PartitionDown", "PartitionDown", "DependencyNeverSatisfied"):
        slurm.put("12", "PENDING", reason=reason)
        one_pass.make_pass(slurm.root)
    assert [event["why"].partition(":")[0] for event in told()] == [
        "PartitionDown",
        "DependencyNeverSatisfied",
    ]
    assert {event["event"] for event in told()} == {"waits"}


def test_a_job_of_a_complete_run_leaves_the_queue_without_failing_those_that_wait_for_it(
    slurm: FakeSlurm,
) -> None:
    for name, job in (("awaited", "12"), ("alone", "13")):
        run = make_run(slurm, name, job=job, state="PENDING")
        attempt(run, 1, 3000, cause="completed")
        write(run, 10, "supervisor-0001", "completed", attempt=1)
        slurm.put(job, "PENDING", reason="BeginTime", start_time=time.time() + 100)
    slurm.awaited.add("12")
    assert sorted(acts(slurm)) == [("alone", Action.WITHDRAW), ("awaited", Action.EXPEDITE)]
    assert slurm.jobs["12"].pending
    assert not slurm.jobs["13"].live
