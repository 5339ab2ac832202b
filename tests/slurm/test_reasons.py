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
        ("launch failure limit exceeded requeued held", Hold.FAILED_LAUNCH),
        ("user env retrieval failed requeued held", Hold.FAILED_LAUNCH),
        ("JobHeldUser", Hold.USER),
        ("JobHeldAdmin", Hold.PERSON),
        ("Priority", None),
        ("BeginTime", None),
    ],
)
def test_what_holds_a_job(reason: str, hold: Hold | None) -> None:
    assert reasons.hold_of(job(reason)) is hold


@pytest.mark.parametrize("state", ["SPECIAL_EXIT", "REQUEUE_HOLD", "RESV_DEL_HOLD"])
def test_a_hold_that_gives_no_reason_shows_in_the_state(state: str) -> None:
    held = job("None", state)
    assert held.pending
    assert reasons.hold_of(held) is Hold.PERSON
    assert "scontrol release 12" in str(reasons.remedy(held))


def test_a_hold_for_launches_is_one_whatever_the_state_is_called() -> None:
    held = job("launch failure limit exceeded requeued held", state="REQUEUE_HOLD")
    assert reasons.hold_of(held) is Hold.FAILED_LAUNCH
    assert reasons.remedy(held) is None  # a watchdog releases it


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        ("DependencyNeverSatisfied", "submit that again"),
        ("PartitionDown", "cluster.partition"),
        ("PartitionInactive", "cluster.partition"),
        ("PartitionNodeLimit", "cluster.nodes"),
        ("PartitionTimeLimit", "cluster.time_min"),
        ("BadConstraints", "cluster.gpu_request"),
        ("QOSMaxGRESPerJob", "cluster.qos"),
        ("QOSMaxWallDurationPerJobLimit", "cluster.qos"),
        ("AssocMaxNodePerJobLimit", "cluster.account"),
        ("QOSMinGRES", "cluster.qos"),
        ("AssocGrpCPUMinutesLimit", "cluster.account"),
        ("AssocGrpGRESMinutes", "cluster.account"),
        ("InvalidAccount", "cluster.account"),
        ("InvalidQOS", "cluster.qos"),
        ("JobHeldAdmin", "scontrol release 12"),
    ],
)
def test_what_never_passes_by_itself_has_a_remedy(reason: str, names: str) -> None:
    assert names in str(reasons.remedy(job(reason)))


@pytest.mark.parametrize(
    "reason",
    [
        "None",
        "Priority",
        "Resources",
        "Dependency",
        "BeginTime",
        "JobHeldUser",
        "QOSMaxGRESPerUser",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpGRES",
        "AssocGrpCPURunMinutesLimit",
        "JobArrayTaskLimit",
        "Licenses",
        "ReqNodeNotAvail, UnavailableNodes:n[2-3]",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
        "partitions",
    ],
)
def test_what_may_pass_is_waited_for(reason: str) -> None:
    assert reasons.remedy(job(reason)) is None


def test_only_a_pending_job_lacks_nodes() -> None:
    reason = "ReqNodeNotAvail, UnavailableNodes:n[2-3]"
    assert reasons.lacks_nodes(job(reason))
    assert not reasons.lacks_nodes(job(reason, state="RUNNING"))
    assert not reasons.lacks_nodes(job("Resources"))
