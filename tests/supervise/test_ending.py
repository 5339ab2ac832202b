"""What ended an attempt, and what that says against nodes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.runs.story import fold
from hpc_llm.supervise.ending import Ending, bad_nodes, judge, report_evidence
from hpc_llm.supervise.place import LocalPlace, Place
from hpc_llm.supervise.steps import StepEnd
from tests.supervise.places import Allocation, planned_attempt, watch_of

RECOVERY = RecoveryConfig(node_exclusion_h=24.0, max_excluded_nodes=8)
STOPPED = StepEnd({0: int(ExitCode.STOPPED)}, None)


def frozen(path: Path, root: Path) -> RunLayout:
    """A run directory as far as its end needs one: its code is the root's."""
    run = RunLayout(path)
    run.make_folders()
    (root / ".code" / "abc").mkdir(parents=True, exist_ok=True)
    run.code.symlink_to(root / ".code" / "abc")
    return run


def test_hangs_of_runs_that_have_one_name_in_two_sweeps_are_two(tmp_path: Path) -> None:
    hang = Ending(Cause.HANG, StepEnd({}, None), None, "n1")
    runs = [frozen(tmp_path / sweep / "trial-0000", tmp_path) for sweep in ("adam", "lion")]
    first, second = [planned_attempt(run.path, world_size=2, steps=8) for run in runs]
    for _ in range(2):
        report_evidence(hang, fold([]), ["n1", "n2"], first)
    assert bad_nodes(runs[0], RECOVERY) == set(), "one hang, told twice"
    report_evidence(hang, fold([]), ["n1", "n2"], second)
    assert bad_nodes(runs[0], RECOVERY) == {"n1"}


@pytest.mark.parametrize(
    ("is_ending", "cause"), [(True, "lost"), (False, "killed"), (None, "killed")]
)
def test_a_notice_that_the_ranks_did_not_hear_counts_if_the_job_is_ending(
    tmp_path: Path, is_ending: bool | None, cause: str
) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    place = Allocation(ending=is_ending)
    end = StepEnd({0: -signal.SIGTERM}, None)
    assert judge(end, watch_of(attempt, place), place, attempt).cause == cause


@pytest.mark.parametrize(
    ("place", "signals", "cause"),
    [
        (LocalPlace(), [signal.SIGTERM], Cause.STOPPED),
        (Allocation(), [signal.SIGUSR2], Cause.TIME_LIMIT),
        (Allocation(), [signal.SIGTERM], Cause.LOST),
        (Allocation(), [], Cause.LOST),  # Slurm has signalled the ranks alone
    ],
)
def test_ranks_that_were_asked_to_stop_end_for_the_reason_of_the_one_who_asked(
    tmp_path: Path, place: Place, signals: list[int], cause: Cause
) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    assert judge(STOPPED, watch_of(attempt, place, *signals), place, attempt).cause is cause


@pytest.mark.parametrize(
    ("place", "signals", "code", "cause"),
    [
        (LocalPlace(), [signal.SIGINT, signal.SIGINT], -signal.SIGKILL, Cause.STOPPED),
        (LocalPlace(), [signal.SIGTERM], -signal.SIGKILL, Cause.STOPPED),  # it saved for too long
        (LocalPlace(), [signal.SIGTERM], -signal.SIGHUP, Cause.STOPPED),
        (LocalPlace(), [signal.SIGINT], -signal.SIGSEGV, Cause.CRASH),
        (LocalPlace(), [], -signal.SIGKILL, Cause.KILLED),
        (Allocation(), [signal.SIGUSR2], -signal.SIGKILL, Cause.KILLED),
    ],
)
def test_what_its_user_had_killed_is_no_lack_of_memory(
    tmp_path: Path, place: Place, signals: list[int], code: int, cause: Cause
) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    end = StepEnd({0: code}, 0)
    assert judge(end, watch_of(attempt, place, *signals), place, attempt).cause is cause


@pytest.mark.parametrize(("signals", "cause"), [([], "hours-spent"), ([10], "lost")])
def test_hours_that_are_spent_are_a_reason_unless_a_signal_came(
    tmp_path: Path, signals: list[int], cause: str
) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    watch = watch_of(attempt, Allocation(), *signals)
    watch.hours_spent = True
    assert judge(STOPPED, watch, Allocation(), attempt).cause == cause


KILLED = {0: -signal.SIGKILL, 1: -signal.SIGKILL}


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (StepEnd({0: 1}, 0, said="Invalid MPI type", for_good=True), Cause.CONFIG_ERROR),
        (StepEnd({0: 1}, 0, said="Timed out"), Cause.LAUNCH_FAILED),
        (StepEnd(KILLED, 0, cancelled_for="TIME LIMIT"), Cause.STEP_TIME_LIMIT),
        (StepEnd(KILLED, 1, cancelled_for="NODE FAILURE"), Cause.LOST),
        (StepEnd(KILLED, 1, ("n1",)), Cause.LOST),
        (StepEnd(KILLED, 1), Cause.KILLED),
    ],
)
def test_what_slurm_did_to_a_step_is_no_ranks_or_nodes_fault(
    tmp_path: Path, said: StepEnd, cause: Cause
) -> None:
    attempt = planned_attempt(tmp_path, world_size=2, steps=8)
    place = Allocation(hosts=["n1", "n2"])
    ending = judge(said, watch_of(attempt, place), place, attempt)
    assert ending.cause is cause
    if cause is not Cause.KILLED:
        assert (ending.node, ending.end.first_failed) == (None, None)
    if said.said:
        assert ending.failure is not None and ending.failure.error == said.said


def test_the_jobs_own_end_is_slurms_to_tell(tmp_path: Path) -> None:
    attempt = planned_attempt(tmp_path, world_size=2, steps=8)
    place = Allocation(hosts=["n1", "n2"], ending=True)
    for end in (
        StepEnd({0: 1}, 0, said="Job/step already completing or completed"),
        StepEnd(KILLED, 1, ("n2",)),
    ):
        assert judge(end, watch_of(attempt, place), place, attempt).cause is Cause.LOST


def test_a_rank_that_ran_has_failed_itself_whatever_srun_adds(tmp_path: Path) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    log = attempt.layout.rank_log(1, 0)
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01 00:00:00,000 rank 0 ERROR ValueError: no\n")
    end = StepEnd({0: 1}, 0, said="Timed out waiting for job step to complete")
    place = Allocation()
    assert judge(end, watch_of(attempt, place), place, attempt).cause is Cause.CRASH


def test_a_hold_that_has_expired_was_a_persons_signal(tmp_path: Path) -> None:
    attempt = planned_attempt(tmp_path, world_size=1, steps=8)
    watch = watch_of(attempt, Allocation())
    watch.hold_expired = True
    assert judge(STOPPED, watch, Allocation(), attempt).cause is Cause.KILLED
