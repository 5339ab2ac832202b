"""A step that srun runs: what it prints, steps that it does not get, and the fence."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs import attempts
from hpc_llm.supervise import srun_step
from hpc_llm.supervise.srun_step import SrunStep, rank_exits, srun_end
from hpc_llm.supervise.steps import STOP_SIGNAL, StepEnd
from tests.supervise.ranks import STOPPED, finished, spec, until_one_left


def test_srun_names_the_rank_that_had_a_reason_and_not_those_that_slurm_ended() -> None:
    lost = "srun: error: n1: task 0: Exited with exit code 1\n"
    said = (
        lost
        + "srun: error: n2: task 1: Exited with exit code 86\nsrun: error: n3: task 2: Killed\n"
    )
    assert srun_end(said, 1, 3, STOPPED) == StepEnd(
        {0: 1, 1: 86, 2: -signal.SIGKILL}, first_failed=1
    )
    ended = lost + "srun: error: n2: task 1: Killed\n"
    assert srun_end(ended, 1, 2, STOPPED) == StepEnd({0: 1, 1: -signal.SIGKILL}, first_failed=0)


def test_ranks_that_slurm_told_of_the_end_before_they_listened_have_not_failed() -> None:
    """A preemption while they start: those that lost them end with errors of their own."""
    told = "srun: error: n1: tasks 0-1: Terminated\n"
    codes = {0: -signal.SIGTERM, 1: -signal.SIGTERM}
    assert srun_end(told, 143, 2, STOPPED) == StepEnd(codes, first_failed=None)
    followed = (
        told + "srun: error: n2: task 2: Exited with exit code 1\nsrun: error: n3: task 3: Killed\n"
    )
    assert srun_end(followed, 143, 4, STOPPED).first_failed is None
    reason = told + "srun: error: n2: task 2: Exited with exit code 86\n"
    assert srun_end(reason, 143, 3, STOPPED).first_failed == 2
    ended = "srun: error: n2: task 2: Exited with exit code 1\n" + told
    assert srun_end(ended, 1, 3, STOPPED).first_failed == 2


def test_what_srun_says_of_ranks_that_were_asked_before_they_listened() -> None:
    said = (
        "srun: error: n2: task 1: User defined signal 2\nsrun: error: n1: tasks 0,2-3: Exited "
        "with exit code 80\n"
    )
    assert rank_exits(said) == [(1, -STOP_SIGNAL), (0, STOPPED), (2, STOPPED), (3, STOPPED)]


def test_a_step_that_slurm_does_not_start_yet_is_asked_for_again(
    srun: Any, wake: int, tmp_path: Path
) -> None:
    assert finished(srun(3), wake) == StepEnd({0: 0}, None)
    assert (tmp_path / "tries").read_text() == "x\n" * 4
    assert (tmp_path / "log").read_text().count("Unable to create step") == 3


def test_behind_the_fence_srun_is_killed_and_no_task_by_the_jobs_number(
    tmp_path: Path, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job may be the living attempt's; ranks that hang in a collective would keep the
    supervisor for ever.
    """

    def fenced(name: str) -> bool:
        raise attempts.Fenced("another attempt")

    (tmp_path / "srun").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    step = SrunStep(spec(tmp_path, ""), STOPPED, [], {}, tmp_path / "log", fenced)
    monkeypatch.setattr(srun_step, "AFTER_ABORT_S", 0.0)
    step.abort()
    assert finished(step, wake).exit_codes == {0: -signal.SIGKILL}


def test_a_log_that_cannot_be_written_is_no_end_of_a_step(
    srun: Any, wake: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Path, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    assert finished(srun(1), wake) == StepEnd({0: 0}, None)
    assert not (tmp_path / "log").exists()


def test_after_a_while_a_step_that_slurm_does_not_start_has_failed(
    srun: Any, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(srun_step, "PATIENCE_S", 0.0)
    end = finished(srun(9), wake)
    assert end.said == "Unable to create step for job 1: Requested nodes are busy"
    assert not end.for_good


ASKS_TOO_MUCH = "More processors requested than permitted"


def test_a_step_that_slurm_never_starts_is_asked_for_once(
    srun: Any, wake: int, tmp_path: Path
) -> None:
    end = finished(srun(9, ASKS_TOO_MUCH), wake)
    assert (end.for_good, end.said) == (True, f"Unable to create step for job 1: {ASKS_TOO_MUCH}")
    assert (tmp_path / "tries").read_text() == "x\n"


def test_what_an_earlier_step_may_still_hold_is_asked_for_again(srun: Any, wake: int) -> None:
    assert finished(srun(2, ASKS_TOO_MUCH, is_first=False), wake) == StepEnd({0: 0}, None)


@pytest.mark.parametrize(
    ("text", "said", "for_good"),
    [
        (
            "srun: error: cannot find mpi plugin for mpi/pmix_v9\n"
            "srun: error: Invalid MPI type 'pmix_v9', --mpi=list for acceptable types\n",
            "cannot find mpi plugin for mpi/pmix_v9; Invalid MPI type 'pmix_v9', --mpi=list for "
            "acceptable types",
            True,
        ),
        (
            "srun: unrecognized option '--foo=1'\nTry \"srun --help\" for more information\n",
            "unrecognized option '--foo=1'",
            True,
        ),
        ("srun: fatal: Failed to parse --cpu-bind= values.\n", None, True),
        ("srun: error: Only allocated 1 nodes asked for 2\n", None, True),
        ("srun: error: Could not open stdout file: No such file or directory\n", None, True),
        ("srun: error: Timed out waiting for the tasks to launch\n", None, False),
    ],
)
def test_an_srun_that_starts_no_task_is_quoted(text: str, said: str | None, for_good: bool) -> None:
    end = srun_end(text, 1, 2, STOPPED)
    assert (bool(end.said), end.for_good) == (True, for_good)
    if said is not None:
        assert end.said == said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "slurmstepd-n1: error: *** STEP 1.9 ON n1 CANCELLED AT {} DUE TO TIME LIMIT ***",
            "TIME LIMIT",
        ),
        (
            "slurmstepd: error: *** STEP 7.0 ON n2 CANCELLED AT {} DUE TO NODE FAILURE, SEE "
            "SLURMCTLD LOG FOR DETAILS ***",
            "NODE FAILURE",
        ),
        (
            "slurmstepd: error: *** STEP 7.0 ON n2 CANCELLED AT {0} DUE TO TIME LIMIT ***\n"
            "slurmstepd: error: *** JOB 7 ON n2 CANCELLED AT {0} DUE TO TIME LIMIT ***",
            "JOB TIME LIMIT",
        ),
        ("slurmstepd: error: *** STEP 7.0 ON n2 CANCELLED AT {} ***", None),
    ],
)
def test_why_slurm_cancelled_a_step_is_read(text: str, why: str | None) -> None:
    killed = "\nsrun: error: n1: task 0: Killed\n"
    text = text.format("2026-12-01T03:32:49") + killed
    assert srun_end(text, 137, 1, STOPPED).cancelled_for == why


def test_a_stop_that_the_starting_srun_has_swallowed_is_said_again(
    tmp_path: Path, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text(
        "#!/bin/bash\ntrap 'let heard+=1; [ $heard = 2 ] && exit 0' USR2\n"
        "while :; do read -t 0.02 <>/dev/zero -N 0; sleep 0.02; done\n"
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(srun_step, "STOP_AGAIN_S", 0.1)
    step = SrunStep(spec(tmp_path, ""), STOPPED, [], {}, tmp_path / "log", lambda name: True)
    step.ask_to_stop()
    assert finished(step, wake).first_failed is None


def test_a_stop_before_there_is_a_step_is_no_failure(
    srun: Any, wake: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As srun of 26.05 says it, when the word comes while it waits for the step."""
    monkeypatch.setattr(srun_step, "STOP_SIGNAL", 0)
    (tmp_path / "srun").write_text(
        "#!/bin/sh\necho 'srun: error: No step_layout given for pending step for job 21'\nexit 1\n"
    )
    step = srun(0)
    step.ask_to_stop()
    assert finished(step, wake) == StepEnd({0: STOPPED}, None)


def test_between_two_tries_a_step_can_be_asked_to_stop(
    srun: Any, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(srun_step, "AGAIN_S", 1000.0)
    step = srun(9)
    until_one_left(step, wake)  # it has set itself the time of the next try
    step.ask_to_stop()
    assert step.poll() == StepEnd({0: STOPPED}, None)
