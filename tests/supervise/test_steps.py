"""Ranks as real processes: started, watched, asked to stop, killed. Every wait is for an event.

The ranks here are tiny programs: `$RANK` tells them apart, `leave`, `wait` and `tell` are what they
can do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from hpc_llm.recovery import look
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import attempts, freeze, ledger
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.status import logs
from hpc_llm.supervise import steps, supervisor
from hpc_llm.supervise.place import LocalPlace, SlurmPlace
from hpc_llm.supervise.step_watch import StepWatch
from hpc_llm.supervise.steps import STOP_SIGNAL, LocalStep, StepEnd, StepSpec
from tests.configs import make_config, planned
from tests.runs.machine import in_child

STOPPED = int(ExitCode.STOPPED)
_LIMIT_S = 30.0  # a wait for an event that takes longer has failed

PROGRAM = f"""
import os, signal, sys
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ.get("HPC_LLM_ATTEMPT", "0"))
ASKED = signal.Signals({int(STOP_SIGNAL)})
signal.pthread_sigmask(signal.SIG_BLOCK, [ASKED, signal.SIGTERM])

def tell(word):
    with open(os.environ["PIPE"], "w") as pipe:
        pipe.write(f"{{RANK}} {{word}}\\n")

def wait(*numbers):
    return signal.sigwait(numbers or [ASKED])

def leave(code):
    sys.exit(code)

def hang():
    while True:
        signal.pause()
"""


@dataclass
class Pipe:
    """What ranks tell the test, line by line."""

    path: Path

    def __post_init__(self) -> None:
        os.mkfifo(self.path)
        self._file = os.open(self.path, os.O_RDWR)
        self._read = b""

    def lines(self, number: int) -> list[str]:
        """The next `number` lines, sorted; waits for them."""
        while self._read.count(b"\n") < number:
            assert select.select([self._file], [], [], _LIMIT_S)[0], f"told so far: {self._read!r}"
            self._read += os.read(self._file, 4096)
        *lines, self._read = self._read.split(b"\n", number)
        return sorted(line.decode() for line in lines)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    found = Pipe(tmp_path / "pipe")
    yield found
    os.close(found._file)


@pytest.fixture
def wake() -> Iterator[int]:
    """The end of a pipe into which the kernel's SIGCHLD writes, as in the supervisor."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    fd_before = signal.set_wakeup_fd(writer)
    yield reader
    signal.set_wakeup_fd(fd_before)
    signal.signal(signal.SIGCHLD, before)
    os.close(reader)
    os.close(writer)


def spec(folder: Path, program: str, world_size: int = 1, **environment: str) -> StepSpec:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM + program]
    environment = {"PIPE": str(folder / "pipe"), **environment}
    return StepSpec(
        command, folder, environment, world_size, 3, lambda rank: folder / f"{rank}.log"
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Starts steps; none of their processes outlives the test."""
    running: list[LocalStep] = []

    def start(program: str, world_size: int = 1, **environment: str) -> LocalStep:
        running.append(
            LocalStep(spec(tmp_path, program, world_size, **environment), STOPPED, 12345)
        )
        return running[-1]

    yield start
    for step in running:
        step.kill()


def finished(step: LocalStep, wake: int) -> StepEnd:
    """The end of a step, waited for as the supervisor does: by SIGCHLD, and by the step's own
    deadline.
    """
    while (end := step.poll()) is None:
        seconds = step.seconds_to_deadline()
        ready, _, _ = select.select([wake], [], [], _LIMIT_S if seconds is None else seconds)
        assert ready or seconds is not None, "no rank ended"
        if ready:
            os.read(wake, 4096)
    return end


def until_one_left(step: LocalStep, wake: int) -> None:
    """Until the step has seen that a rank has left, and has set the others a deadline."""
    while step.poll() is None and step.seconds_to_deadline() is None:
        assert select.select([wake], [], [], _LIMIT_S)[0]
        os.read(wake, 4096)


def wait_for_end(pid_file: int) -> None:
    assert select.select([pid_file], [], [], _LIMIT_S)[0], "the process lives on"
    os.close(pid_file)


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
    monkeypatch.setattr(steps, "AFTER_FAILURE_S", 0.0)
    end = finished(started("leave(3) if RANK == 1 else hang()", world_size=3), wake)
    assert end == StepEnd({0: -signal.SIGKILL, 1: 3, 2: -signal.SIGKILL}, first_failed=1)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_rank_that_dies_of_a_signal_has_failed(
    started: Any, wake: int, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(steps, "AFTER_FAILURE_S", 0.0)
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


def test_srun_names_the_rank_that_had_a_reason_and_not_those_that_slurm_ended() -> None:
    lost = "srun: error: n1: task 0: Exited with exit code 1\n"
    said = (
        lost
        + "srun: error: n2: task 1: Exited with exit code 86\nsrun: error: n3: task 2: Killed\n"
    )
    assert steps.srun_end(said, 1, 3, STOPPED) == StepEnd(
        {0: 1, 1: 86, 2: -signal.SIGKILL}, first_failed=1
    )
    ended = lost + "srun: error: n2: task 1: Killed\n"
    assert steps.srun_end(ended, 1, 2, STOPPED) == StepEnd(
        {0: 1, 1: -signal.SIGKILL}, first_failed=0
    )


def test_ranks_that_slurm_told_of_the_end_before_they_listened_have_not_failed() -> None:
    """A preemption while they start: those that lost them end with errors of their own."""
    told = "srun: error: n1: tasks 0-1: Terminated\n"
    codes = {0: -signal.SIGTERM, 1: -signal.SIGTERM}
    assert steps.srun_end(told, 143, 2, STOPPED) == StepEnd(codes, first_failed=None)
    followed = (
        told + "srun: error: n2: task 2: Exited with exit code 1\nsrun: error: n3: task 3: Killed\n"
    )
    assert steps.srun_end(followed, 143, 4, STOPPED).first_failed is None
    reason = told + "srun: error: n2: task 2: Exited with exit code 86\n"
    assert steps.srun_end(reason, 143, 3, STOPPED).first_failed == 2
    ended = "srun: error: n2: task 2: Exited with exit code 1\n" + told
    assert steps.srun_end(ended, 1, 3, STOPPED).first_failed == 2


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
    monkeypatch.setattr(steps, "AFTER_STOP_S", 0.0)
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
    monkeypatch.setattr(steps, "AFTER_FAILURE_S", 0.0)
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


def test_what_srun_says_of_ranks_that_were_asked_before_they_listened() -> None:
    said = (
        "srun: error: n2: task 1: User defined signal 2\nsrun: error: n1: tasks 0,2-3: Exited "
        "with exit code 80\n"
    )
    assert steps.rank_exits(said) == [(1, -STOP_SIGNAL), (0, STOPPED), (2, STOPPED), (3, STOPPED)]


SRUN = """#!/bin/sh
echo x >>"$FOLDER/tries"
[ "$(wc -l <"$FOLDER/tries")" -gt "$REFUSED" ] && exit 0
echo "srun: error: Unable to create step for job 1: Memory required by task is not available"
exit 1
"""


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps of an srun that gets none for the first `refused` times."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setattr(steps, "AGAIN_S", 0.05)

    def start(refused: int) -> steps.SrunStep:
        monkeypatch.setenv("REFUSED", str(refused))
        return steps.SrunStep(
            spec(tmp_path, ""), STOPPED, [], {}, tmp_path / "log", lambda name: True
        )

    return start


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
    step = steps.SrunStep(spec(tmp_path, ""), STOPPED, [], {}, tmp_path / "log", fenced)
    monkeypatch.setattr(steps, "AFTER_ABORT_S", 0.0)
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
    monkeypatch.setattr(steps, "PATIENCE_S", 0.0)
    assert finished(srun(9), wake) == StepEnd({0: 1}, first_failed=0)


def test_between_two_tries_a_step_can_be_asked_to_stop(
    srun: Any, wake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "AGAIN_S", 1000.0)
    step = srun(9)
    until_one_left(step, wake)  # it has set itself the time of the next try
    step.ask_to_stop()
    assert step.poll() == StepEnd({0: STOPPED}, None)


def test_a_program_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    nowhere = replace(spec(tmp_path, ""), command=["/no/such/python"])
    with pytest.raises(FileNotFoundError):
        LocalStep(nowhere, STOPPED, 12345)


@dataclass
class Run:
    """A frozen run whose ranks are a program of ours, supervised by a real process."""

    layout: RunLayout
    running: list[subprocess.Popen[str]]

    def supervise(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hpc_llm.supervise", str(self.layout.path)]
        hidden = ("HPC_LLM_PARENT", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["PIPE"] = str(self.layout.path.parent / "pipe")
        self.running.append(
            subprocess.Popen(
                command,
                cwd=self.layout.code,
                env=environment,
                text=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        return self.running[-1]

    def status(self) -> int:
        """Supervised to its end; the exit status, or the complaint that a traceback is."""
        process = self.supervise()
        _, complaints = process.communicate(timeout=_LIMIT_S)
        assert "Traceback" not in complaints, complaints
        return process.returncode

    def facts(self, event: str) -> list[dict[str, Any]]:
        return [found.facts for found in ledger.read(self.layout.ledger) if found.event == event]

    @property
    def causes(self) -> list[str]:
        return [facts["cause"] for facts in self.facts("ended")]


DONE = """
def done():
    folder = sys.argv[3] + "/checkpoints/step-99999999"  # of the last step or a later one
    os.makedirs(folder, exist_ok=True)
    open(folder + "/manifest.json", "a").close()
    leave(0)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """Makes a run of `world_size` ranks whose python is `program`."""
    made: list[Run] = []

    def make(program: str, world_size: int = 1, *words: str) -> Run:
        python = tmp_path / "python"
        code = (PROGRAM + DONE + program).replace("'", "'\\''")
        python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S -c '{code}' \"$@\"\n")
        python.chmod(0o755)
        config = make_config(
            f"run.root={tmp_path}", "run.name=first", f"cluster.python={python}", *words
        )
        config = replace(config, cluster=replace(config.cluster, gpus_per_node=world_size))
        made.append(Run(freeze.freeze(planned(config)), []))
        return made[-1]

    yield make
    for process in (process for each in made for process in each.running):
        if process.poll() is None:
            process.kill()
            process.communicate()


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
    fill(os.getppid(), 2)
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
    process.communicate(timeout=_LIMIT_S)
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
    process.communicate(timeout=_LIMIT_S)
    assert process.returncode == 1
    assert story.facts("ended")[0]["exit_codes"] == {"0": -signal.SIGKILL}


def test_a_run_that_crashes_after_it_was_asked_to_stop_is_not_begun_again(
    run: Any, pipe: Pipe
) -> None:
    story = run("tell('ready'); wait(); leave(1)")
    process = story.supervise()
    pipe.lines(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=_LIMIT_S)
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


class Allocation(LocalPlace):
    """Of a Slurm that requeues whoever asks."""

    parental = False
    time_is_up = SlurmPlace.time_is_up

    def come_back(self, fence: Fence) -> str:
        return "requeue"


@pytest.mark.parametrize(("place", "again"), [(Allocation(), ["requeue"]), (LocalPlace(), [])])
def test_a_crash_while_the_time_limit_is_near_takes_the_job_back_to_the_queue(
    run: Any, place: LocalPlace, again: list[str]
) -> None:
    story = run("done()")
    dying = supervisor.Supervisor(story.layout.path, place)
    dying.signals.append(signal.SIGUSR2)
    book = ledger.Ledger(story.layout.ledger, "supervisor-0001")
    book.write("started", attempt=1, checkpoint_step=0, job="12")
    ended = {
        "attempt": 1,
        "cause": "crash",
        "first_failed": 0,
        "checkpoint_step": 0,
        "gpu_hours": 0.1,
    }
    dying._conclude(book, ended, Cause.CRASH, dying._decide(ended))
    assert [said["how"] for said in story.facts("requeued")] == again
    assert look.read_record(story.layout).facts.final is None


class Lost(Allocation):
    """Of a Slurm that has given this node up and starts the same job elsewhere: while attempt 1
    runs, or later.
    """

    outlives_nodes = True

    def __init__(self, layout: RunLayout, later: bool, time_is_up: bool) -> None:
        self.layout = layout
        self.later = later
        self.time_is_up = lambda signals: time_is_up  # type: ignore

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
    assert look.read_record(story.layout).facts.final is None


def test_a_submission_that_comes_while_an_attempt_runs_does_not_take_its_end_away(run: Any) -> None:
    story = run("done()")
    running = supervisor.Supervisor(story.layout.path, LocalPlace())
    ledger.Ledger(story.layout.ledger, "supervisor-0001").write(
        "started", attempt=1, checkpoint_step=0
    )
    ledger.Ledger(story.layout.ledger, "submit").write("submitted", after_attempt=1)
    ended = {"attempt": 1, "cause": "completed", "checkpoint_step": 8, "gpu_hours": 0.1}
    assert not running._decide(ended).restart


def test_a_halved_micro_batch_is_that_of_its_submission(run: Any) -> None:
    """The plan of the next one may be for larger GPUs, or follow a train.micro_batch that its user
    gave.
    """
    code = ExitCode.GPU_OUT_OF_MEMORY
    ranks = f"""print(os.environ["HPC_LLM_MICRO_BATCH"], flush=True); leave({code}) if ATTEMPT == 1 else done()"""
    story = run(ranks, 1, "train.global_batch=8", "train.micro_batch=4")
    assert story.status() == 0
    said = [story.layout.rank_log(attempt, 0).read_text() for attempt in (1, 2)]
    assert said == ["4\n", "2\n"]
    later = supervisor.Supervisor(story.layout.path, LocalPlace())
    assert later._spec(3).environment["HPC_LLM_MICRO_BATCH"] == "2"
    ledger.Ledger(story.layout.ledger, "submit").write("submitted", after_attempt=2)
    assert later._spec(2).environment["HPC_LLM_MICRO_BATCH"] == "2", (
        "of an attempt that it came after"
    )
    assert later._spec(3).environment["HPC_LLM_MICRO_BATCH"] == "4"


@pytest.mark.parametrize(("going", "cause"), [(True, "lost"), (False, "killed"), (None, "killed")])
def test_a_notice_that_the_ranks_did_not_hear_counts_if_the_job_is_ending(
    run: Any, going: bool | None, cause: str
) -> None:
    story = run("done()")
    place = Allocation()
    place.going = lambda: going  # type: ignore[method-assign]
    watched = supervisor.Supervisor(story.layout.path, place)
    book = ledger.SupervisorLedger(story.layout.ledger, "supervisor-0001", lambda seconds: None)
    vigil = StepWatch(story.layout, place, watched.config.recovery, book, 1, [])
    assert watched._judge(1, StepEnd({0: -signal.SIGTERM}, None), vigil).cause == cause


@pytest.mark.parametrize(("hosts", "threads"), [((), 2), (("n1", "n2"), 4)])
def test_the_cores_of_a_node_are_shared_by_its_ranks(
    run: Any, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], threads: int
) -> None:
    story = run("done()", 4)
    place = LocalPlace()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    place.hosts = hosts
    assert supervisor.Supervisor(story.layout.path, place)._spec(1).threads_per_rank == threads


def test_two_supervisors_never_train_one_run(run: Any, pipe: Pipe) -> None:
    story = run("tell('ready'); wait(); leave(80)")
    first = story.supervise()
    pipe.lines(1)
    second = story.supervise()
    _, complaint = second.communicate(timeout=_LIMIT_S)
    assert second.returncode == supervisor.BUSY
    assert complaint == f"{story.layout.path}: another process is training this run\n"
    assert len(story.facts("started")) == 1
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=_LIMIT_S) == STOPPED


def test_a_supervisor_that_is_killed_lets_go_of_its_run(run: Any, pipe: Pipe) -> None:
    story = run("tell('ready'); wait() if ATTEMPT == 1 else None; done()")
    first = story.supervise()
    pipe.lines(1)
    rank = os.pidfd_open(psutil.Process(first.pid).children()[0].pid)
    first.kill()
    first.communicate(timeout=_LIMIT_S)
    assert story.status() == 0
    assert [facts["attempt"] for facts in story.facts("started")] == [1, 2]
    signal.pidfd_send_signal(rank, signal.SIGKILL)
    os.close(rank)


def test_a_supervisor_needs_nothing_of_the_checkout(run: Any, tmp_path: Path) -> None:
    """The code is the run's own: the place that it was submitted from may change or vanish."""
    story = run("done()")
    moved = tmp_path / "copy"
    shutil.copytree(story.layout.code.resolve(), moved)
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(moved)!r}); "
                                           "sys.argv[1:] = "
         f"[{str(story.layout.path)!r}]; from hpc_llm.supervise.__main__ import main; sys.exit(main())"],
        cwd="/", env={"PIPE": ""}, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert story.causes == ["completed"]


def test_a_deadline_that_has_come_is_not_slept_over(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = run("done()")
    waited: list[float] = []
    monkeypatch.setattr(select, "select", lambda *given: waited.append(given[3]) or ([], [], []))
    watching = supervisor.Supervisor(story.layout.path, LocalPlace())
    watching._wake = 0
    watching._sleep(0.0)
    watching._sleep(1e6)
    assert waited == [0.0, supervisor.HEARTBEAT_S]


def test_a_sigterm_that_comes_twice_lets_the_ranks_save(run: Any, pipe: Pipe) -> None:
    """As from the death of a parent that has threads: one for each that dies."""
    story = run("tell('ready'); wait(); tell('asked'); wait(); leave(80)")
    process = story.supervise()
    assert pipe.lines(1) == ["0 ready"]
    process.send_signal(signal.SIGTERM)
    assert pipe.lines(1) == ["0 asked"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=_LIMIT_S)
    assert story.facts("ended")[0]["exit_codes"] == {"0": STOPPED}
