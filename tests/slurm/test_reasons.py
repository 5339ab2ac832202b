"""Slurm's reasons for letting a job wait, in the spellings of several releases."""

from __future__ import annotations

import pytest

from hpc_llm.slurm import reasons
from hpc_llm.slurm.reasons import Hold
from hpc_llm.slurm.records import QueuedJob


def job(reason: str, state: str = "PENDING") -> QueuedJob:
    return QueuedJob("12", 12, state, reason, 1, None, None, "", "one", "/")


@pytest.mark.parametrize(
    ("reason", "hold"),
    [
        ("launch failed requeued held", Hold.FAILED_LAUNCH),
        ("launch_failed_requeued_held", Hold.FAILED_LAUNCH),
        ("JobHoldMaxRequeue", Hold.FAILED_LAUNCH),
        ("job requeued in held state", Hold.EXIT_CODE),
        ("JobHeldUser", Hold.PERSON),
        ("JobHeldAdmin", Hold.PERSON),
        ("Priority", None),
        ("BeginTime", None),
    ],
)
def test_what_holds_a_job(reason: str, hold: Hold | None) -> None:
    assert reasons.hold_of(job(reason)) is hold


def test_a_special_exit_is_held_by_its_state() -> None:
    assert reasons.hold_of(job("None", state="SPECIAL_EXIT")) is Hold.PERSON


def test_only_a_pending_job_lacks_nodes() -> None:
    reason = "ReqNodeNotAvail, UnavailableNodes:n[2-3]"
    assert reasons.lacks_nodes(job(reason))
    assert not reasons.lacks_nodes(job(reason, state="RUNNING"))
    assert not reasons.lacks_nodes(job("Resources"))
