"""Ranks that are forked from a process with torch do what ranks started from nothing do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import warm_ranks
from tests.chaos.local_runs import FAULTS, Finished, run
from tests.waiting import until

pytestmark = pytest.mark.slow
needs_server = pytest.mark.skipif(
    os.environ.get("HPC_LLM_WARM") == "0", reason="HPC_LLM_WARM=0: every rank starts from nothing"
)
KILLED = [{"attempt": 1, "rank": 1, "kind": "kill", "step": 5}]
UNTIMED = ("time", "gpu_hours", "host", "pid", "seconds", "job", "code")


def told(finished: Finished) -> list[tuple[str, str, list[str]]]:
    """What the ledger tells, without what differs from run to run."""
    return [
        (event.event, str(event.facts.get("cause", "")), sorted({*event.facts} - {*UNTIMED}))
        for event in finished.events
    ]


@needs_server
@pytest.mark.parametrize("stage", [1, 3])
def test_a_killed_run_of_forks_is_that_of_processes_to_the_bit(tmp_path: Path, stage: int) -> None:
    words = ("cluster.gpus_per_node=2", f"train.zero_stage={stage}")
    cold = run(tmp_path, "cold", *words, faults=KILLED, warm=False)
    warm = run(tmp_path, "warm", *words, faults=KILLED)
    assert (warm.status, warm.losses) == (0, cold.losses)
    assert warm.final_state == cold.final_state
    assert sorted(told(warm)) == sorted(told(cold))


class Rank:
    """A stand-in for `hpc_llm.train` in a folder of its own, started as supervisors start ranks."""

    def __init__(self, folder: Path, body: str) -> None:
        package = folder / "hpc_llm"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "train.py").write_text(f"import os, signal, sys, time\n{body}\n")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpc_llm.train", "RUN"],
            cwd=folder,
            env={**os.environ, **warm_ranks.environment(), "PYTHONPATH": str(FAULTS), "OURS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@needs_server
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("sys.exit(80)", 80),
        ("sys.exit()", 0),
        ("os._exit(7)", 7),
        ("raise ValueError('a bug')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_it_ends_as_its_fork_does(tmp_path: Path, body: str, status: int) -> None:
    rank = Rank(tmp_path, body)
    assert rank.process.wait(60) == status


@needs_server
def test_a_fork_has_the_arguments_folder_and_environment_and_gets_the_signals(
    tmp_path: Path,
) -> None:
    rank = Rank(
        tmp_path,
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(42))\n"
        "print(os.getpid(), sys.argv[1:], os.getcwd(), os.environ['OURS'], 'torch' in sys.modules,"
        " flush=True)\n"
        "time.sleep(60)",
    )
    pid, rest = rank.line().split(" ", 1)
    assert rest == f"['RUN'] {tmp_path} 1 True"
    assert int(pid) == warm_ranks.pid_of_fork(rank.process.pid) != rank.process.pid
    rank.process.send_signal(signal.SIGUSR2)
    assert rank.process.wait(60) == 42


@needs_server
def test_a_fork_dies_with_the_process_that_it_works_for(tmp_path: Path) -> None:
    rank = Rank(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(60)")
    fork = os.pidfd_open(int(rank.line()))
    rank.process.kill()
    rank.process.wait(60)
    until(lambda: _is_over(fork), 10, "the fork is gone")
    os.close(fork)


def _is_over(process: int) -> bool:
    try:
        signal.pidfd_send_signal(process, 0)
    except ProcessLookupError:
        return True
    return False


@needs_server
def test_a_process_in_another_place_starts_from_nothing(tmp_path: Path) -> None:
    body = "print('torch' in sys.modules)"
    package = tmp_path / "hpc_llm"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(f"import sys\n{body}\n")
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-m", "hpc_llm.train", "RUN"]
    environment = {**os.environ, **warm_ranks.environment(), "PYTHONPATH": str(FAULTS)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("this user may have no user namespaces")
    assert done.stdout == "False\n"
