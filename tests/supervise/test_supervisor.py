"""A supervisor as a real process: attempts until the run is done, stopped or out of budget."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from hpc_llm.recovery import run_record
from hpc_llm.runs import attempts, ledger, snapshot
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.status import logs
from hpc_llm.storage.files import link_atomic
from hpc_llm.supervise import supervisor
from hpc_llm.supervise.place import LocalPlace
from hpc_llm.supervise.steps import StepSpec
from tests.runs.machine import in_child
from tests.supervise.places import Allocation
from tests.supervise.ranks import LIMIT_S, STOPPED, Pipe


def test_a_run_that_completes_is_told_of_and_not_begun_again(run: Any) -> None:
    story = run("print(sys.argv[1:]); done()", 2)
    assert story.status() == 0
    assert [event.event for event in ledger.read(story.layout.ledger)] == [
        "started",
        "ended",
        "completed",
    ]
    assert story.facts("ended")[0]["exit_codes"] == {"0": 0, "1": 0}
    assert (
        story.layout.rank_log(1, 1).read_text()
        == f"['-m', 'hpc_llm.train', '{story.layout.path}']\n"
    )
    assert story.status() == 0
    assert len(story.facts("started")) == 1


def test_a_crash_is_tried_again_in_place(run: Any) -> None:
    story = run("leave(3) if ATTEMPT == 1 else done()")
    assert story.status() == 0
    assert story.causes == ["crash", "completed"]
    assert story.facts("ended")[0]["first_failed"] == 0
    assert [facts["restart"] for facts in story.facts("ended")] == [True, False]
    assert "exit codes" in story.layout.supervisor_log(1).read_text()


FILLED = """
import resource, time
NONE = resource.RLIM_INFINITY

def fill(parent, seconds):
    resource.prlimit(parent, resource.RLIMIT_FSIZE, (1, NONE))
    if os.fork() == 0:
        os.setsid()
        time.sleep(seconds)
        resource.prlimit(parent, resource.RLIMIT_FSIZE, (NONE, NONE))
        os._exit(0)

if ATTEMPT < 3:
    fill(os.getppid(), 1)
leave(3) if ATTEMPT == 1 else done()
"""


def test_a_supervisor_that_cannot_write_for_a_while_writes_later_and_goes_on(run: Any) -> None:
    """As if its disk were full from the middle of an attempt to after its end."""
    story = run(FILLED)
    assert story.status() == 0
    assert story.causes == ["crash", "completed"]
    assert [facts["attempt"] for facts in story.facts("started")] == [1, 2]
    assert len(story.facts("completed")) == 1


def test_a_run_that_always_crashes_stops_when_its_budget_is_spent(run: Any) -> None:
    story = run("leave(1)", 1, "recovery.max_crashes=2", "recovery.max_no_progress=9")
    assert story.status() == 1
    assert story.causes == ["crash"] * 3
    assert story.facts("ended")[-1]["why"] == "crash: 3 crashes (recovery.max_crashes=2)"


def test_a_run_without_progress_stops(run: Any) -> None:
    story = run("leave(1)", 1, "recovery.max_crashes=9", "recovery.max_no_progress=2")
    assert story.status() == 1
    assert story.causes == ["crash"] * 2


@pytest.mark.parametrize(("code", "status"), [(2, 2), (84, 1), (82, 1)])
def test_what_is_no_matter_of_trying_again_is_tried_once(run: Any, code: int, status: int) -> None:
    story = run(f"leave({code})")
    assert story.status() == status
    assert len(story.causes) == 1


def test_a_job_that_slurm_requeues_with_its_nodes_kept_ends_with_0(run: Any) -> None:
    """Slurm 25.11 holds one that ends with another status."""
    words = ["cluster=local-slurm", "cluster.nodes=1", "cluster.sbatch={requeue: expedite}"]
    assert run("leave(82)", 1, *words).status() == 0


def test_code_that_a_purge_has_thinned_out_ends_the_run_with_what_mends_it(run: Any) -> None:
    """Not the nodes are bad, and another job would meet the same."""
    story = run("done()")
    made = snapshot.make(story.layout.path.parent)
    (made / "hpc_llm" / "training" / "loop.py").unlink()
    link_atomic(story.layout.code, str(made))
    assert story.status() == 2
    (given_up,) = story.facts("given-up")
    assert "submit the run again" in given_up["why"]
    assert story.facts("started") == []


def test_a_program_that_went_away_ends_the_attempt_and_the_reason_is_told(run: Any) -> None:
    story = run("done()", 2)
    (story.layout.path.parent / "python").unlink()
    assert story.status() == 2
    (end,) = story.facts("ended")
    assert (end["cause"], end["first_failed"], end["restart"]) == ("config-error", 0, False)
    said = logs.choose(story.layout, None).failure
    assert said is not None
    assert said.error.startswith("could not be started: cluster.python or cluster.wrapper: ")
    assert said.error.endswith("/python: No such file or directory")


class Crowded(LocalPlace):
    """Where this user may have no more processes, at first."""

    def __init__(self) -> None:
        self.refusals = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")]

    def start(self, *words: Any) -> Any:
        if self.refusals:
            raise self.refusals.pop()
        return super().start(*words)


def test_ranks_that_cannot_be_started_now_are_started_again(run: Any) -> None:
    story = run("done()")
    status = in_child(lambda: supervisor.Supervisor(story.layout.path, Crowded()).run())
    assert (status, story.causes) == ((0, 0), ["crash", "completed"])
    assert "temporarily unavailable" in story.facts("ended")[0]["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_a_run_saves_and_says_so(run: Any, pipe: Pipe, number: int) -> None:
    story = run("tell('ready'); wait(); leave(80)", 2)
    process = story.supervise()
    pipe.lines(2)
    process.send_signal(number)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == STOPPED
    assert story.causes == ["stopped"]
    assert story.facts("ended")[0]["restart"] is False


def test_asked_twice_a_run_leaves_at_once(run: Any, pipe: Pipe) -> None:
    story = run("tell('ready'); wait(); tell('asked'); hang()")
    process = story.supervise()
    assert pipe.lines(1) == ["0 ready"]
    process.send_signal(signal.SIGINT)
    assert pipe.lines(1) == ["0 asked"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == STOPPED
    assert story.causes == ["stopped"]
    assert story.facts("ended")[0]["exit_codes"] == {"0": -signal.SIGKILL}


def test_a_run_that_crashes_after_it_was_asked_to_stop_is_not_begun_again(
    run: Any, pipe: Pipe
) -> None:
    story = run("tell('ready'); wait(); leave(1)")
    process = story.supervise()
    pipe.lines(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert story.causes == ["crash"]
    assert story.facts("ended")[0]["restart"] is False


def test_a_run_that_never_fails_stops_when_its_hours_are_spent(run: Any) -> None:
    story = run("tell('ready'); wait(); leave(80)", 2, f"run.max_gpu_hours={2 * 2 / 3600}")
    assert story.status() == 1
    assert story.causes == ["hours-spent"]
    (end,) = story.facts("ended")
    assert end["restart"] is False
    assert end["gpu_hours"] >= 2 * 2 / 3600
    assert "run.max_gpu_hours=" in story.facts("given-up")[0]["why"]


class Lost(Allocation):
    """Of a Slurm that has given this node up and starts the same job elsewhere.

    That happens while attempt 1 runs, or `later`.
    """

    def __init__(self, layout: RunLayout, later: bool, time_is_up: bool) -> None:
        super().__init__(outlives_nodes=True)
        self.layout = layout
        self.later = later
        self._time_is_up = time_is_up

    def time_is_up(self, signals: Collection[int]) -> bool:
        return self._time_is_up

    def start(self, spec: StepSpec, fence: Fence, log: Path) -> Any:
        if not self.later and fence.number == 1:
            attempts.claim(self.layout)
        return super().start(spec, fence, log)

    def enough_without(self, nodes: Collection[str]) -> bool:
        """Asked when the end has been judged."""
        if self.later:
            attempts.claim(self.layout)
        return False


@pytest.mark.parametrize(("later", "cause"), [(False, "fenced"), (True, "crash")])
@pytest.mark.parametrize("time_is_up", [False, True])
def test_a_supervisor_that_slurm_has_given_up_leaves_the_run_to_the_job_that_has_it(
    run: Any, later: bool, cause: str, time_is_up: bool
) -> None:
    story = run("leave(3)")
    place = Lost(story.layout, later, time_is_up)
    assert in_child(supervisor.Supervisor(story.layout.path, place).run) == (0, 1)
    assert story.causes == [cause]
    assert attempts.newest(story.layout) == 2, "the other one, which may go on"
    assert not story.facts("requeued")
    assert run_record.read_record(story.layout).summary.final is None


def test_two_supervisors_never_train_one_run(run: Any, pipe: Pipe) -> None:
    story = run("tell('ready'); wait(); leave(80)")
    first = story.supervise()
    pipe.lines(1)
    second = story.supervise()
    _, complaint = second.communicate(timeout=LIMIT_S)
    assert second.returncode == supervisor.BUSY
    assert complaint == f"{story.layout.path}: another process is training this run\n"
    assert len(story.facts("started")) == 1
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=LIMIT_S) == STOPPED


def test_a_supervisor_that_is_killed_lets_go_of_its_run(run: Any, pipe: Pipe) -> None:
    story = run("tell('ready'); wait() if ATTEMPT == 1 else None; done()")
    first = story.supervise()
    pipe.lines(1)
    rank = os.pidfd_open(psutil.Process(first.pid).children()[0].pid)
    first.kill()
    first.communicate(timeout=LIMIT_S)
    assert story.status() == 0
    assert [facts["attempt"] for facts in story.facts("started")] == [1, 2]
    signal.pidfd_send_signal(rank, signal.SIGKILL)
    os.close(rank)


def test_a_supervisor_needs_nothing_of_the_checkout(run: Any, tmp_path: Path) -> None:
    """The code is the run's own: the place that it was submitted from may change or vanish."""
    story = run("done()")
    moved = tmp_path / "copy"
    shutil.copytree(story.layout.code.resolve(), moved)
    program = f"""
import sys
sys.path.insert(0, {str(moved)!r})
sys.argv[1:] = [{str(story.layout.path)!r}]
from hpc_llm.supervise.__main__ import main
sys.exit(main())
"""
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd="/",
        env={"PIPE": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert story.causes == ["completed"]


def test_a_sigterm_that_comes_twice_lets_the_ranks_save(run: Any, pipe: Pipe) -> None:
    """As from the death of a parent that has threads: one for each that dies."""
    story = run("tell('ready'); wait(); tell('asked'); wait(); leave(80)")
    process = story.supervise()
    assert pipe.lines(1) == ["0 ready"]
    process.send_signal(signal.SIGTERM)
    assert pipe.lines(1) == ["0 asked"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert story.facts("ended")[0]["exit_codes"] == {"0": STOPPED}
