"""Ranks as the tasks of one srun step. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from hpc_llm.recovery.causes import origin
from hpc_llm.runs.attempts import Fenced
from hpc_llm.runs.orders import ExitCode
from hpc_llm.slurm import srun
from hpc_llm.slurm.step import clean_environment
from hpc_llm.supervise.steps import (
    AFTER_ABORT_S,
    AFTER_FAILURE_S,
    STOP_SIGNAL,
    StepEnd,
    StepSpec,
    has_failed,
    start_process,
)

AGAIN_S = 5.0  # between tries to start a step that Slurm does not start
PATIENCE_S = 300.0  # for all those tries
# The same where more is asked for than there is: it may be what a step holds that has just ended.
AFTER_A_STEP_S = 60.0
STOP_AGAIN_S = 5.0  # an srun that is still starting its tasks loses the first word (all releases)
# What --kill-on-bad-exit does to the ranks after the first.
_ENDED_BY_SLURM = (-signal.SIGKILL, -signal.SIGTERM)


class SrunStep:
    """One task per GPU over the allocation's nodes, by srun, which ends all when one fails.

    When srun ends a step, it waits KillWait (30 s) for ranks that are busy saving or stuck;
    `signal_tasks`, which sends a signal by name to all tasks and says whether Slurm accepted it,
    shortens that to AFTER_FAILURE_S. It raises Fenced where the run is another attempt's.

    An srun that got no step (slurmctld is down, or has not noticed that the last step is over) is
    restarted for PATIENCE_S: the run itself has not failed. One that is refused for good is not,
    unless an earlier step of the allocation (`is_first` is false) may still be counted.
    """

    def __init__(
        self,
        spec: StepSpec,
        stop_code: int,
        options: list[str],
        place: dict[str, str],
        log: Path,
        signal_tasks: Callable[[str], bool],
        is_first: bool = True,
    ) -> None:
        self._for_good_s = 0.0 if is_first else AFTER_A_STEP_S
        self._stop_code = stop_code
        self._world_size = spec.world_size
        self._signal_tasks = signal_tasks
        self._log = log
        self._printed = b""
        self._deadline: float | None = None
        command = ["srun", *options, "--", *spec.command]
        self._start = lambda: start_process(
            spec, command, place, None, clean_environment(os.environ)
        )
        self._began = time.monotonic()
        self._asked = False  # whether the ranks were asked or made to end
        self._again_at: float | None = None
        self._stop_again_at: float | None = None
        self._run()

    def _run(self) -> None:
        self._process = self._start()
        self._again_at = None
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._open = True
        os.set_blocking(self._output, False)

    def poll(self) -> StepEnd | None:
        if self._again_at is not None:
            return self._between_two_tries(self._again_at)
        code = self._process.poll()
        self._take_output()
        text = self._printed.decode(errors="replace")
        if code is None:
            self._repeat_stop()
            self._end_after_failure(text)
            return None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._open = False
        if self._got_no_step(text, code):
            if self._asked:
                return StepEnd({0: self._stop_code}, None)
            patience_s = self._for_good_s if srun.refused_for_good(text) else PATIENCE_S
            if time.monotonic() - self._began < patience_s:
                self._printed = b""
                self._deadline = None
                self._again_at = time.monotonic() + AGAIN_S
                return self._between_two_tries(self._again_at)
        return srun_end(text, code, self._world_size, self._stop_code)

    def _end_after_failure(self, text: str) -> None:
        """Give the other ranks a deadline once one has failed, and kill them after it."""
        if self._deadline is None and self._has_a_failed_rank(text):
            self._deadline = time.monotonic() + AFTER_FAILURE_S
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.kill()

    def _has_a_failed_rank(self, text: str) -> bool:
        """SIGTERM is no failure: in a preemption's grace a job that we kill is not requeued.

        Seen on Slurm 22.05.
        """
        for _, code in rank_exits(text):
            if has_failed(code, self._stop_code) and code != -signal.SIGTERM:
                return True
        return False

    def _got_no_step(self, text: str, code: int) -> bool:
        return code != 0 and srun.refused(text) and not rank_exits(text)

    def _between_two_tries(self, again_at: float) -> StepEnd | None:
        if self._asked:
            return StepEnd({0: self._stop_code}, None)
        if time.monotonic() >= again_at:
            self._run()
        return None

    def seconds_to_deadline(self) -> float | None:
        moments = (self._deadline, self._again_at, self._stop_again_at)
        times = [moment for moment in moments if moment is not None]
        if not times:
            return None
        return max(0.0, min(times) - time.monotonic())

    def files(self) -> list[int]:
        return [self._output] if self._open else []

    def ask_to_stop(self) -> None:
        self._asked = True
        self._stop_again_at = time.monotonic()
        self._repeat_stop()

    def _repeat_stop(self) -> None:
        """Say the word again until the step has ended: ranks only set a flag."""
        now = time.monotonic()
        if self._stop_again_at is None or now < self._stop_again_at:
            return
        self._stop_again_at = now + STOP_AGAIN_S
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNAL)  # srun forwards it to every task

    def abort(self) -> None:
        self._asked = True
        with contextlib.suppress(Fenced):
            self._signal_tasks("ABRT")
            self._signal_tasks("CONT")
        self._deadline = time.monotonic() + AFTER_ABORT_S

    def kill(self) -> None:
        """Kill through Slurm, since tasks outlive an srun that is killed; again until they end.

        Behind the fence only srun is killed: its tasks end with the job of this supervisor, if they
        are still Slurm's.
        """
        self._asked = True
        self._deadline = time.monotonic() + AFTER_FAILURE_S
        if self._process.poll() is not None:
            return
        try:
            self._signal_tasks("KILL")
        except Fenced:
            self._process.kill()

    def _take_output(self) -> None:
        """Read srun's new output, for the log and for `poll`."""
        with contextlib.suppress(BlockingIOError):
            while new := os.read(self._output, 65536):
                self._printed += new
                with contextlib.suppress(OSError), self._log.open("ab") as file:
                    file.write(new)
            self._open = False


def srun_end(text: str, code: int, world_size: int, stop_code: int) -> StepEnd:
    """How a step ended whose srun printed `text` and exited with `code`.

    An srun that lost a node with all its ranks can exit with 0 (seen on Slurm 22.05): that says
    nothing about them. Ranks that die of SIGTERM before all others have not failed: Slurm sends it
    when the job ends, and ranks that train listen to it.
    """
    lost = srun.lost_nodes(text)
    if code == 0 and not lost:
        return StepEnd(dict.fromkeys(range(world_size), 0), None)
    exits = rank_exits(text)
    why = srun.cancelled_for(text)
    if not exits and not lost and why is None and code > 0:
        said = srun.own_words(text)
        return StepEnd({0: code}, 0, said=said, for_good=srun.refused_for_good(text))
    exits = exits or [(0, code or int(ExitCode.CRASHED))]
    codes: dict[int, int] = {}
    for rank, number in exits:
        codes.setdefault(rank, number)  # the first report on a rank counts
    failed = _failed_first(codes, stop_code)
    if failed is not None and codes[failed] == -signal.SIGTERM:
        failed = None
    return StepEnd(codes, failed, lost, cancelled_for=why)


def _failed_first(codes: dict[int, int], stop_code: int) -> int | None:
    """The rank that failed first, of exit codes in the order of their reports."""
    first, *others = codes.items()
    if not has_failed(first[1], stop_code):
        return None
    failed = dict([first])
    for rank, code in others:
        if code not in _ENDED_BY_SLURM and has_failed(code, stop_code):
            failed[rank] = code
    return origin(failed)


def rank_exits(text: str) -> list[tuple[int, int]]:
    """(rank, exit code) in the order in which srun reported them; negative for a signal."""
    exits = []
    for end in srun.rank_exits(text):
        code = int(ExitCode.OUT_OF_MEMORY) if end.code is None else end.code
        exits.append((end.rank, code))
    return exits
