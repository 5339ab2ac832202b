"""Keeps a run alive in its place: attempt after attempt, until done, stopped or out of budget.

`python -m hpc_llm.supervise RUN_DIR`, in the run's code snapshot: by `submit` on this machine, or
as the batch shell of a Slurm job. Standard library only, so that it starts on any node and outside
any container.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery import run_record
from hpc_llm.recovery.budgets import exhausted
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import attempts, event_names, freeze, ledger, snapshot
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import held_by_us
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.attempt_supervisor import AttemptSupervisor
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.waiting import HEARTBEAT_S, Waiting

BUSY = 75  # exit status where another supervisor holds the run (EX_TEMPFAIL)


class Supervisor:
    """One run's attempts in one place."""

    def __init__(self, run_dir: Path, place: Place) -> None:
        self._layout = RunLayout(run_dir.absolute())
        self._place = place
        self._config = freeze.read_config(self._layout)
        self._plan = freeze.read_plan(self._layout)
        self._waiting = Waiting(self._layout.heartbeat)

    def run(self) -> int:
        """Attempts until the policy says stop; the exit status of the run."""
        restrict_access(self._config.run.group)
        with self._waiting.listening(), self._lock() as ours:
            if not ours:
                print(f"{self._layout.path}: {attempts.TRAINED_ELSEWHERE}", file=sys.stderr)
                return BUSY
            if self._is_over():
                return 0
            if not self._has_its_code():
                return _exit_status(Cause.CONFIG_ERROR)
            number: int | None = self._waiting.patiently(lambda: attempts.claim(self._layout))
            while number is not None:
                attempt = RunAttempt(self._layout, self._config, self._plan, number)
                cause, decision = AttemptSupervisor(attempt, self._place, self._waiting).run()
                if not decision.restart or self._waiting.signals:
                    return self._leave(cause)
                number = self._next_number(attempt)
            return self._leave(Cause.FENCED)

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        """Whether this process may supervise the run."""
        if self._place.exclusive:
            return held_by_us(self._layout.lock)
        return contextlib.nullcontext(True)

    def _is_over(self) -> bool:
        """Whether there is nothing left to do.

        That is so for a complete run. A job that Slurm has queued again also leaves a run alone
        that was ended, or has spent a budget.
        """
        run = self._waiting.patiently(lambda: run_record.read_record(self._layout)).summary
        if run.completed or not self._place.restarts:
            return run.completed
        spent = exhausted(run.history, run.budgets)
        if spent and run.final is None:
            self._give_up(spent)
        return bool(spent) or run.final is not None

    def _has_its_code(self) -> bool:
        """Whether the snapshot is as it was made; else the run is given up, with what mends it.

        The same would happen in every job that a watchdog could submit, on nodes that are well.
        """
        try:
            self._waiting.patiently(lambda: snapshot.require_whole(self._layout.code))
        except InputError as error:
            print(*error.problems, sep="\n", file=sys.stderr, flush=True)
            self._give_up(str(error))
            return False
        return True

    def _give_up(self, why: str) -> None:
        run = self._waiting.patiently(lambda: run_record.read_record(self._layout)).summary
        book = ledger.Ledger(self._layout.ledger, f"supervisor-{os.getpid()}")
        job = self._place.facts().get("job")
        book.write(event_names.GIVEN_UP, why=why, job=job, after_attempt=run.attempt)

    def _next_number(self, attempt: RunAttempt) -> int | None:
        """The number of a restart in this place; None if the run is another process's by now."""
        try:
            return self._waiting.patiently(lambda: attempts.follow(self._layout, attempt.number))
        except attempts.Fenced as error:
            attempt.say_now(str(error))
            return None

    def _leave(self, cause: Cause) -> int:
        """The exit status; where Slurm is about to requeue the job, once it says so."""
        if cause not in (Cause.COMPLETED, Cause.FENCED) and self._may_still_end():
            while self._may_still_end(unknown=True):
                self._waiting.sleep(HEARTBEAT_S)
        if self._config.cluster.sbatch.get("requeue") == "expedite":
            return 0  # Slurm would hold a job that is to be requeued so and ends with another one
        return _exit_status(cause)

    def _may_still_end(self, unknown: bool = False) -> bool:
        """Whether the place is being taken away and has not said so by a signal yet.

        unknown: the answer where Slurm gives none.
        """
        if self._place.got_final_signal(self._waiting.signals):
            return False
        is_ending = self._place.is_ending()
        if is_ending and self._place.requeues_who_leaves():
            return False
        return unknown if is_ending is None else is_ending


def _exit_status(cause: Cause) -> int:
    if cause is Cause.COMPLETED:
        return 0
    if cause is Cause.CONFIG_ERROR:
        return 2
    if cause is Cause.STOPPED:
        return int(ExitCode.STOPPED)
    return 1
