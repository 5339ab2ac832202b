"""Keeps one run alive in its place: attempt after attempt, until it is done, stopped or out of budget.

`python -m hpc_llm.launch.supervisor RUN_DIR`, in the run's code snapshot. Standard library only, so
that it starts on any node and outside any container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.launch.parent import die_with_parent
from hpc_llm.launch.steps import LocalStep, StepEnd, StepSpec
from hpc_llm.recovery.causes import Cause, ExitCode, classify
from hpc_llm.recovery.policy import Budgets, Decision, Ended, decide
from hpc_llm.runs import attempts
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.storage.files import append_line, restrict_access

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
BUSY = 75  # exit status where another supervisor holds the run (EX_TEMPFAIL)


class Supervisor:
    """One run's attempts on this machine."""

    def __init__(self, run_dir: Path) -> None:
        self.layout = RunLayout(run_dir.absolute())
        self.config: dict[str, Any] = json.loads(self.layout.config.read_text())
        self.plan: dict[str, Any] = json.loads(self.layout.plan.read_text())
        self.signals: list[int] = []
        self.history: list[Ended] = []

    def run(self) -> int:
        """Attempts until the policy says stop; the exit status of the run."""
        restrict_access(self.config["run"]["group"])
        if "HPC_LLM_PARENT" in os.environ:
            die_with_parent(int(os.environ["HPC_LLM_PARENT"]), signal.SIGTERM)
        with self._signals_into_pipe() as wake, _exclusive(self.layout.lock) as free:
            if not free:
                print(f"{self.layout.path}: another process is training this run", file=sys.stderr)
                return BUSY
            while True:
                cause, decision = self._attempt(wake)
                if not decision.restart or self.signals:
                    return _exit_status(cause)

    def _attempt(self, wake: int) -> tuple[Cause, Decision]:
        number = attempts.claim(self.layout)
        ledger = Ledger(self.layout.ledger, f"supervisor-{number:04d}")
        started, start_step = time.time(), newest_step(self.layout.checkpoints)
        ledger.write("started", attempt=number, host=os.uname().nodename, pid=os.getpid(), checkpoint_step=start_step)
        log = self.layout.supervisor_log(number)
        append_line(log, f"{_now()} attempt {number}: {self.plan['world_size']} ranks from step {start_step}")
        step = LocalStep(self._spec(number), ExitCode.STOPPED)
        end = self._wait(step, wake)
        cause = classify(end.exit_codes, end.first_failed)
        hours = (time.time() - started) / 3600 * self.plan["world_size"]
        self.history.append(Ended(cause, start_step, newest_step(self.layout.checkpoints), hours))
        decision = decide(self.history, self._budgets())
        ledger.write(
            "ended",
            attempt=number,
            cause=str(cause),
            exit_codes=end.exit_codes,
            first_failed=end.first_failed,
            checkpoint_step=self.history[-1].checkpoint_step,
            gpu_hours=round(hours, 6),
            restart=decision.restart and not self.signals,
            why=decision.why,
        )
        append_line(
            log,
            f"{_now()} {cause}, exit codes {end.exit_codes}, first to fail: rank {end.first_failed}; {decision.why}",
        )
        if cause is Cause.COMPLETED:
            ledger.write("completed", attempt=number, steps=self.plan["steps"])
        return cause, decision

    def _wait(self, step: LocalStep, wake: int) -> StepEnd:
        """Until all ranks have left. The first stop signal asks them to save, the second kills them."""
        obeyed = 0
        if self.signals:  # it came between two attempts
            step.ask_to_stop()
        while (end := step.poll()) is None:
            if len(self.signals) > obeyed:
                obeyed = len(self.signals)
                step.ask_to_stop() if obeyed == 1 else step.kill()
            ready, _, _ = select.select([wake], [], [], step.seconds_to_deadline())
            if ready:
                os.read(wake, 4096)
        return end

    def _spec(self, number: int) -> StepSpec:
        world_size, cluster = self.plan["world_size"], self.config["cluster"]
        threads = (
            cluster["threads_per_rank"] or cluster["cpus_per_gpu"] or max(1, len(os.sched_getaffinity(0)) // world_size)
        )
        return StepSpec(
            command=[cluster["python"] or sys.executable, "-m", "hpc_llm.train", str(self.layout.path)],
            directory=self.layout.code,
            environment={**cluster["exports"], "HPC_LLM_ATTEMPT": str(number), "HPC_LLM_SUPERVISOR": str(os.getpid())},
            world_size=world_size,
            threads_per_rank=threads,
            log=lambda rank: self.layout.rank_log(number, rank),
        )

    def _budgets(self) -> Budgets:
        recovery = self.config["recovery"]
        return Budgets(recovery["max_crashes"], recovery["max_no_progress"], self.config["run"]["max_gpu_hours"])

    @contextlib.contextmanager
    def _signals_into_pipe(self) -> Iterator[int]:
        """Signals only note themselves and wake the loop through a pipe."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda got, _: self.signals.append(got))
        yield reader


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _exit_status(cause: Cause) -> int:
    if cause is Cause.COMPLETED:
        return 0
    if cause is Cause.CONFIG_ERROR:
        return 2
    return int(ExitCode.STOPPED) if cause is Cause.STOPPED else 1


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Whether this process alone holds `path`; the kernel lets go when the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).run())
