"""Ranks on this machine: which of them failed first, how they are asked to stop, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.supervise import local_step
from hpc_llm.supervise.local_step import LocalStep
from hpc_llm.supervise.steps import STOP_SIGNAL, StepEnd
from tests.supervise.ranks import STOPPED, Pipe, finished, spec, until_one_left, wait_for_end


def test_all_ranks_that_end_well(started: Any, wake: int) -> None:
    assert finished(started("leave(0)", world_size=3), wake) == StepEnd({0: 0, 1: 0, 2: 0}, None)


def test_a_rank_knows_its_place(
    started: Any, wake: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "77")
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("SET_BY_USER", "before")
    step = started(
        "import json; print(json.dumps(dict(os.environ)))",
        world_size=2,
        SET_BY_USER="a b",
        RANK="9",
    )
    assert finished(step, wake).exit_codes == {0: 0, 1: 0}
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.log").read_text())
        expected = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "12345",
            "OMP_NUM_THREADS": "3",
            "PYTHONUNBUFFERED": "1",
            "INHERITED": "yes",
            "SET_BY_USER": "a b",
        }
        assert {name: found[name] for name in expected} == expected


def test_a_rank_runs_in_the_folder_of_the_code_and_reads_nothing(
    started: Any, wake: int, tmp_path: Path
) -> None:
    assert finished(started("print(os.getcwd(), repr(sys.stdin.read()))"), wake).exit_codes == {
        0: 0
    }
    assert (tmp_path / "0.log").read_text() == f"{tmp_path} ''\n"


def test_both_outputs_are_appended_to_the_ranks_log(
    started: Any, wake: int, tmp_path: Path
) -> None:
    (tmp_path / "0.log").write_text("before\n")
    finished(started("os.write(1, b'out\\n'); os.write(2, b'err\\n')"), wake)
    assert (tmp_path / "0.log").read_text() == "before\nout\nerr\n"


def test_the_first_rank_to_fail_is_found_and_the_others_are_killed(
    started: Any, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_step, "AFTER_FAILURE_S", 0.0)
    end = finished(started("leave(3) if RANK == 1 else hang()", world_size=3), wake)
    assert end == StepEnd({0: -signal.SIGKILL, 1: 3, 2: -signal.SIGKILL}, first_failed=1)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_rank_that_dies_of_a_signal_has_failed(
    started: Any, wake: int, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(local_step, "AFTER_FAILURE_S", 0.0)
    end = finished(started(f"hang() if RANK == 0 else {how}", world_size=2), wake)
    assert end.first_failed == 1
    assert end.exit_codes[1] in (-signal.SIGKILL, -signal.SIGABRT)


def test_after_a_failure_the_others_may_still_say_why_they_end(
    started: Any, wake: int, pipe: Pipe
) -> None:
    """Rank 0 sees its peer vanish, and ends with an error of its own well before it would be
    killed.
    """
    step = started("leave(3) if RANK == 1 else (tell('ready'), wait(), leave(4))", world_size=2)
    pipe.lines(1)
    until_one_left(step, wake)
    step.ask_to_stop()
    assert finished(step, wake) == StepEnd({0: 4, 1: 3}, first_failed=1)


@pytest.mark.parametrize(
    ("code", "number"), [(1, signal.SIGKILL), (1, signal.SIGSEGV), (-6, signal.SIGKILL)]
)
def test_a_rank_that_is_noticed_before_the_peer_it_lost_is_not_the_one_that_failed(
    started: Any, wake: int, pipe: Pipe, code: int, number: signal.Signals
) -> None:
    """Both die within milliseconds: which of them is noticed first is a matter of the scheduler."""
    leave = "os.abort()" if code == -signal.SIGABRT else f"leave({code})"
    step = started(f"tell(os.getpid()); {leave} if RANK == 1 else hang()", world_size=2)
    pids = dict(line.split() for line in pipe.lines(2))
    until_one_left(step, wake)
    os.kill(int(pids["0"]), number)
    assert finished(step, wake) == StepEnd({0: -number, 1: code}, first_failed=0)


def test_while_all_ranks_run_there_is_nothing_to_wait_for_but_them(
    started: Any, pipe: Pipe
) -> None:
    step = started("tell('ready'); hang()", world_size=2)
    pipe.lines(2)
    assert step.poll() is None
    assert step.seconds_to_deadline() is None


def test_asked_to_stop_every_rank_saves_and_leaves(started: Any, wake: int, pipe: Pipe) -> None:
    step = started("tell('ready'); tell(wait(ASKED, signal.SIGTERM).name); leave(80)", world_size=3)
    assert pipe.lines(3) == ["0 ready", "1 ready", "2 ready"]
    step.ask_to_stop()
    asked = signal.Signals(STOP_SIGNAL).name
    assert pipe.lines(3) == [f"0 {asked}", f"1 {asked}", f"2 {asked}"]
    assert finished(step, wake) == StepEnd(dict.fromkeys(range(3), STOPPED), None)


def test_a_rank_that_is_done_needs_not_be_asked(started: Any, wake: int, pipe: Pipe) -> None:
    step = started("leave(0) if RANK == 0 else (tell('ready'), wait(), leave(80))", world_size=2)
    pipe.lines(1)
    until_one_left(step, wake)
    step.ask_to_stop()
    step.ask_to_stop()
    assert finished(step, wake) == StepEnd({0: 0, 1: STOPPED}, None)


def test_a_rank_that_does_not_leave_with_the_others_is_killed_and_named(
    started: Any, wake: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_step, "AFTER_STOP_S", 0.0)
    step = started("tell('ready'); hang() if RANK == 1 else (wait(), leave(80))", world_size=2)
    pipe.lines(2)
    step.ask_to_stop()
    assert finished(step, wake) == StepEnd({0: STOPPED, 1: -signal.SIGKILL}, first_failed=1)


CHILD = """
if os.fork() == 0:
    tell(os.getpid())
    hang()
"""


def test_kill_ends_a_rank_that_does_not_listen_and_all_that_it_started(
    started: Any, wake: int, pipe: Pipe
) -> None:
    step = started(CHILD + "tell('ready'); hang()")
    told = [line.split()[1] for line in pipe.lines(2)]
    child = os.pidfd_open(int(next(word for word in told if word != "ready")))
    step.ask_to_stop()
    assert step.poll() is None
    step.kill()
    assert finished(step, wake).exit_codes == {0: -signal.SIGKILL}
    wait_for_end(child)


def test_what_a_failed_rank_started_does_not_outlive_the_step(
    started: Any, wake: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data worker of a crashed rank holds its GPU's memory and makes the next attempt fail
    too.
    """
    monkeypatch.setattr(local_step, "AFTER_FAILURE_S", 0.0)
    step = started("hang() if RANK else None" + CHILD + "leave(3)", world_size=2)
    child = os.pidfd_open(int(pipe.lines(1)[0].split()[1]))
    assert finished(step, wake).first_failed == 0
    try:
        assert select.select([child], [], [], 0.5)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


def test_a_rank_that_is_asked_before_it_listens_has_stopped_and_not_failed(
    started: Any, wake: int, pipe: Pipe
) -> None:
    """Ctrl-C while Python starts: nothing was trained, nothing is to be saved, nothing went
    wrong.
    """
    step = started("signal.pthread_sigmask(signal.SIG_UNBLOCK, [ASKED]); tell('ready'); hang()")
    pipe.lines(1)
    step.ask_to_stop()
    assert finished(step, wake).first_failed is None


def test_a_program_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    nowhere = replace(spec(tmp_path, ""), command=["/no/such/python"])
    with pytest.raises(FileNotFoundError):
        LocalStep(nowhere, STOPPED, 12345)
