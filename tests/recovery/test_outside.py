"""A run seen from outside: every kind of job × every kind of run, and what the watchdog does about
it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpc_llm.recovery.budgets import Budgets, Ended
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.observations import Canceller, JobAnswer, RunSummary
from hpc_llm.recovery.outside import (
    NO_SILENCE,
    NOTHING,
    Silence,
    began_in,
    charged,
    decide_outside,
    glance,
    needs_user,
    silence,
)
from hpc_llm.recovery.policy import Action
from hpc_llm.slurm.reasons import Hold
from hpc_llm.slurm.records import ENDED, JobLife, QueuedJob

NOW = 1_000_000.0
BUDGETS = Budgets(
    max_crashes=3, max_no_progress=3, max_gpu_hours=None, max_launch_failures=2, max_preemptions=2
)
LOST = Ended(Cause.LOST, start_step=0, checkpoint_step=100, gpu_hours=1.0)
RUN = RunSummary(
    address="12",
    submitted_at=NOW - 7200,
    completed=False,
    final=None,
    history=[LOST],
    budgets=BUDGETS,
    heartbeat_at=NOW - 5,
    attempt=1,
)
FRESH = replace(RUN, history=[], began=False, attempt=0, heartbeat_at=None)


def job(
    state: str, reason: str = "None", start: float | None = NOW - 3600, address: str = "12"
) -> QueuedJob:
    nodes = "n1" if state == "RUNNING" else ""
    return QueuedJob(
        address, 12, state, reason, 100, NOW - 7200, start, nodes, "one", "/runs/one/code"
    )


def life(state: str) -> JobLife:
    return JobLife("12", 12, state, None, 0, 0, NOW - 7200, NOW - 7000, NOW - 60, "n[1-2]", "one")


def facts(
    queued: QueuedJob | None = None, last: JobLife | None = None, **more: object
) -> JobAnswer:
    given: dict[str, object] = {"asked": True, "remembered": last is not None, **more}
    return JobAnswer(queued=queued, last_life=last, **given)  # type: ignore[arg-type]


WAITING = job("PENDING", "BeginTime", NOW + 100)
HELD = "launch failed requeued held"

# what is seen → what is done, and a word of why
TABLE: dict[str, tuple[RunSummary, JobAnswer, Action, str]] = {
    "queued for the first time": (FRESH, facts(job("PENDING", "Priority")), Action.NOTHING, ""),
    "queued for later by its user": (FRESH, facts(WAITING), Action.NOTHING, ""),
    "requeued, 100 s to wait": (RUN, facts(WAITING), Action.EXPEDITE, "100 s to wait"),
    "requeued, nearly there": (
        RUN,
        facts(job("PENDING", "BeginTime", NOW + 4)),
        Action.NOTHING,
        "",
    ),
    "requeued, waiting for nodes": (
        RUN,
        facts(job("PENDING", "Resources", None)),
        Action.NOTHING,
        "",
    ),
    "requeued too often": (
        replace(RUN, history=[replace(LOST, cause=Cause.PREEMPTED)] * 3),
        facts(WAITING),
        Action.STOP,
        "3 preemptions",
    ),
    "requeued once too often, says sacct": (
        replace(RUN, history=[*[replace(LOST, cause=Cause.PREEMPTED)] * 2, LOST]),
        facts(WAITING, life("PREEMPTED")),
        Action.STOP,
        "3 preemptions",
    ),
    "held after a failed launch": (FRESH, facts(job("PENDING", HELD)), Action.RELEASE, HELD),
    "the same as newer releases write it": (
        FRESH,
        facts(job("PENDING", HELD.replace(" ", "_"))),
        Action.RELEASE,
        "",
    ),
    "held after too many requeues": (
        RUN,
        facts(job("PENDING", "JobHoldMaxRequeue")),
        Action.RELEASE,
        "",
    ),
    "held, and launches failed before": (
        replace(FRESH, history=[Ended(Cause.LAUNCH_FAILED, 0, 0, 0.0)] * 2),
        facts(job("PENDING", HELD)),
        Action.STOP,
        "3 launch failures (recovery.max_launch_failures=2)",
    ),
    "held by its user": (RUN, facts(job("PENDING", "JobHeldUser")), Action.NOTHING, ""),
    "held by an administrator": (RUN, facts(job("PENDING", "JobHeldAdmin")), Action.NOTHING, ""),
    "held for a person": (
        RUN,
        facts(job("PENDING", "job requeued in special exit state")),
        Action.NOTHING,
        "",
    ),
    "held by the site's RequeueExitHold": (
        RUN,
        facts(job("PENDING", "job requeued in held state")),
        Action.RELEASE,
        "",
    ),
    "running": (RUN, facts(job("RUNNING")), Action.NOTHING, ""),
    "running, silent": (
        replace(RUN, heartbeat_at=NOW - 241),
        facts(job("RUNNING")),
        Action.REQUEUE,
        "silent for 241 s",
    ),
    "running, silent since before its start": (
        replace(RUN, heartbeat_at=NOW - 3600),
        facts(job("RUNNING", start=NOW - 100)),
        Action.NOTHING,
        "",
    ),
    "running, nobody ever came": (
        FRESH,
        facts(job("RUNNING", start=NOW - 250)),
        Action.REQUEUE,
        "250 s",
    ),
    "running, silent, nothing left": (
        replace(RUN, heartbeat_at=NOW - 241, history=[replace(LOST, checkpoint_step=0)] * 3),
        facts(job("RUNNING")),
        Action.STOP,
        "left no newer checkpoint",
    ),
    "completing": (RUN, facts(job("COMPLETING")), Action.NOTHING, ""),
    "preempted for good": (RUN, facts(job("PREEMPTED")), Action.RESUBMIT, "PREEMPTED"),
    "its node failed": (RUN, facts(job("NODE_FAIL")), Action.RESUBMIT, "NODE_FAIL"),
    "its time was up": (RUN, facts(job("TIMEOUT")), Action.RESUBMIT, "TIMEOUT"),
    "failed, and nobody said why": (RUN, facts(job("FAILED")), Action.RESUBMIT, "FAILED"),
    "failed before an attempt began": (FRESH, facts(job("FAILED")), Action.RESUBMIT, "FAILED"),
    "failed again and again before an attempt began": (
        replace(FRESH, history=[Ended(Cause.LAUNCH_FAILED, 0, 0, 0.0)] * 2),
        facts(job("FAILED")),
        Action.STOP,
        "3 launch failures",
    ),
    "over, its successor is queued": (
        replace(RUN, successor="13"),
        facts(job("FAILED"), successor=job("PENDING", "Dependency", address="13")),
        Action.NOTHING,
        "",
    ),
    "cancelled": (RUN, facts(job("CANCELLED")), Action.MARK_CANCELLED, "final"),
    "cancelled by an administrator": (
        RUN,
        facts(None, life("CANCELLED"), canceller=Canceller.OTHER),
        Action.RESUBMIT,
        "by another user",
    ),
    "cancelled by an administrator for the third time": (
        replace(RUN, history=[replace(LOST, cause=Cause.ADMIN_CANCEL)] * 3 + [LOST]),
        facts(None, life("CANCELLED"), canceller=Canceller.OTHER),
        Action.STOP,
        "4 cancellations by another user (recovery.max_admin_cancels=3)",
    ),
    "cancelled by an administrator while it waited": (
        FRESH,
        facts(None, life("CANCELLED"), canceller=Canceller.OTHER),
        Action.RESUBMIT,
        "",
    ),
    "cancelled, accounting is behind": (
        RUN,
        facts(job("CANCELLED"), canceller=Canceller.NOT_YET),
        Action.NOTHING,
        "",
    ),
    "cancelled, nobody keeps accounts": (
        RUN,
        facts(job("CANCELLED"), canceller=Canceller.NOT_TOLD),
        Action.MARK_CANCELLED,
        "does not say by whom",
    ),
    "its deadline passed": (RUN, facts(job("DEADLINE")), Action.STOP, "submit it again"),
    "another cluster has it": (RUN, facts(None, life("REVOKED")), Action.STOP, "federation"),
    "its node was not set up": (RUN, facts(job("RECONFIG_FAIL")), Action.RESUBMIT, "RECONFIG"),
    "its node did not boot": (RUN, facts(job("BOOT_FAIL")), Action.RESUBMIT, "BOOT_FAIL"),
    "an end that nobody here knows": (
        RUN,
        facts(None, life("EVAPORATED")),
        Action.STOP,
        "Slurm ended the job as EVAPORATED",
    ),
    "held after too many launches": (
        FRESH,
        facts(job("REQUEUE_HOLD", "launch failure limit exceeded requeued held")),
        Action.RELEASE,
        "limit exceeded",
    ),
    "began on a node whose clock lags by a minute": (
        replace(RUN, started_at=NOW - 7060, started_in="12", started_life=0),
        facts(job("NODE_FAIL", start=NOW - 7000), life_number=0),
        Action.RESUBMIT,
        "NODE_FAIL",
    ),
    "cancelled, says sacct": (RUN, facts(None, life("CANCELLED")), Action.MARK_CANCELLED, "final"),
    "preempted long ago, says sacct": (
        RUN,
        facts(None, life("PREEMPTED")),
        Action.RESUBMIT,
        "PREEMPTED",
    ),
    "gone, sacct answers and knows nothing": (
        RUN,
        facts(None, remembered=True),
        Action.RESUBMIT,
        "no longer knows",
    ),
    "gone, submitted just now": (
        replace(RUN, submitted_at=NOW - 10),
        facts(None, remembered=True),
        Action.NOTHING,
        "",
    ),
    "gone, and sacct does not answer": (RUN, facts(None), Action.NOTHING, ""),
    "gone, nothing left to spend": (
        replace(RUN, history=[replace(LOST, checkpoint_step=0)] * 3),
        facts(None, life("NODE_FAIL")),
        Action.STOP,
        "NODE_FAIL; 3 attempts in a row",
    ),
    "squeue did not answer": (RUN, facts(None, asked=False), Action.NOTHING, ""),
    "never submitted": (
        replace(RUN, address=None),
        facts(None, remembered=True),
        Action.NOTHING,
        "",
    ),
    "complete, its successor waits": (
        replace(RUN, completed=True, successor="13"),
        facts(job("COMPLETED"), successor=job("PENDING", "Dependency", address="13")),
        Action.WITHDRAW,
        "job 13 has nothing to do",
    ),
    "complete, queued once more by Slurm": (
        replace(RUN, completed=True),
        facts(WAITING),
        Action.WITHDRAW,
        "nothing to do",
    ),
    "complete, queued once more, and others wait for it": (
        replace(RUN, completed=True),
        facts(WAITING, awaited=True),
        Action.EXPEDITE,
        "other jobs wait",
    ),
    "complete before, and submitted by its user again": (
        replace(RUN, completed=True, history=[]),
        facts(job("PENDING", "Priority")),
        Action.NOTHING,
        "",
    ),
    "failed for good, queued again by RequeueExit": (
        replace(RUN, final="diverged"),
        facts(WAITING, site_requeues=True),
        Action.WITHDRAW,
        "RequeueExit",
    ),
    "failed for good, queued again by hand": (
        replace(RUN, final="diverged"),
        facts(WAITING),
        Action.NOTHING,
        "",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_seen_decides_what_is_done(name: str) -> None:
    run, seen, action, why = TABLE[name]
    earlier = silence(run, seen, NOW - 60, NO_SILENCE)  # by a pass a minute ago
    decision = decide_outside(run, seen, NOW, earlier)
    assert decision.action is action
    assert why in decision.why


@pytest.mark.parametrize(
    ("earlier", "action"),
    [
        (NO_SILENCE, Action.NOTHING),  # the first pass that sees it
        (Silence(NOW - 900, NOW - 30), Action.NOTHING),
        (Silence(NOW - 1000, NOW - 500), Action.NOTHING),  # it has been heard of since
        (Silence(NOW - 900, NOW - 60), Action.REQUEUE),
    ],
)
def test_silence_counts_only_if_an_earlier_pass_saw_the_same(
    earlier: Silence, action: Action
) -> None:
    run = replace(RUN, heartbeat_at=NOW - 900)
    assert decide_outside(run, facts(job("RUNNING")), NOW, earlier).action is action


QUEUED = [
    None,
    WAITING,
    job("PENDING", HELD),
    job("RUNNING", start=NOW - 9000),
    *map(job, sorted(ENDED)),
]


@pytest.mark.parametrize(
    "over", [{"completed": True}, {"final": "cancelled"}, {"final": "given-up"}]
)
@pytest.mark.parametrize("queued", QUEUED, ids=str)
def test_a_run_that_is_over_is_never_started_again(
    over: dict[str, object], queued: QueuedJob | None
) -> None:
    run = replace(RUN, heartbeat_at=None, **over)  # type: ignore[arg-type]
    for last in (None, life("NODE_FAIL")):
        decision = decide_outside(run, facts(queued, last), NOW)
        assert decision == NOTHING or (
            run.completed and queued is not None and decision.action is Action.WITHDRAW
        )


@pytest.mark.parametrize("hold", list(Hold))
def test_every_hold_is_released_by_us_or_told_to_its_user(hold: Hold) -> None:
    reason = {
        Hold.FAILED_LAUNCH: HELD,
        Hold.EXIT_CODE: "job requeued in held state",
        Hold.USER: "JobHeldUser",
        Hold.PERSON: "JobHeldAdmin",
    }[hold]
    seen = facts(job("PENDING", reason))
    released = decide_outside(RUN, seen, NOW).action is Action.RELEASE
    told = needs_user(RUN, seen) is not None
    assert (released, told) == (
        hold in (Hold.FAILED_LAUNCH, Hold.EXIT_CODE),
        hold is Hold.PERSON,
    )


def test_a_state_that_nobody_here_knows_is_told_to_the_user() -> None:
    assert "WOBBLING" in str(needs_user(RUN, facts(job("WOBBLING"))))
    assert needs_user(RUN, facts(job("SUSPENDED"))) is None
    assert needs_user(replace(RUN, completed=True), facts(job("PENDING", "PartitionDown"))) is None


def test_an_attempt_of_an_earlier_life_began_before_this_one_whatever_the_clocks_say() -> None:
    ahead = replace(RUN, started_at=NOW + 600, started_in="12", started_life=0)
    assert not began_in(ahead, NOW - 60, 1)
    assert began_in(ahead, NOW - 60, None)  # nothing better is known
    lags = replace(RUN, started_at=NOW - 600, started_in="12", started_life=1)
    assert began_in(lags, NOW - 60, 1)


def test_what_an_administrator_cancels_may_be_held() -> None:
    run = replace(RUN, holds_after_admin_cancel=True)
    decision = decide_outside(run, facts(None, life("CANCELLED"), canceller=Canceller.OTHER), NOW)
    assert (decision.action, decision.hold) == (Action.RESUBMIT, True)
    assert decision.cause is Cause.ADMIN_CANCEL


def test_an_attempt_that_said_nothing_ended_as_slurm_says() -> None:
    assert charged(RUN, Cause.PREEMPTED)[-1] == replace(LOST, cause=Cause.PREEMPTED)
    told = replace(RUN, history=[replace(LOST, cause=Cause.CRASH)])
    assert charged(told, Cause.NODE_FAILURE)[-1].cause is Cause.CRASH
    assert [end.cause for end in charged(replace(RUN, began=False), Cause.LOST)] == [
        Cause.LOST,
        Cause.LAUNCH_FAILED,
    ]


@pytest.mark.parametrize(
    ("queued", "kind"),
    [
        (None, "gone"),
        (job("CANCELLED"), "gone"),
        (job("PENDING", "Priority"), "pending"),
        (job("PENDING", "Dependency"), "pending"),
        (job("PENDING", "PartitionDown"), "stuck: PartitionDown"),
        (job("PENDING", "BeginTime"), "event"),
        (job("PENDING", HELD), "event"),
        (job("RUNNING"), "running"),
        (job("COMPLETING"), "running"),
    ],
)
def test_the_queue_alone_tells_which_runs_to_read(queued: QueuedJob | None, kind: str) -> None:
    assert glance(queued) == kind
