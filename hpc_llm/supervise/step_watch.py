"""Watches one step until its ranks have exited: signals, hangs, GPU-hours, waits in vain. Standard
library only.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.runs import event_names, heartbeat, wake
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import SupervisorLedger
from hpc_llm.supervise.hang import Hang, HangWatch, HoldWatch
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.steps import Step, StepEnd

LOOKS_PER_FLOOR = 8  # checks of the ranks' heartbeats per recovery.hang_floor_s
Sleep = Callable[
    [float, Sequence[int]], None
]  # until something happens to this process or a file, or for seconds


class StepWatch:
    """Watches one attempt. `signals` is appended to by signal handlers."""

    def __init__(
        self,
        layout: RunLayout,
        place: Place,
        recovery: RecoveryConfig,
        book: SupervisorLedger,
        attempt: int,
        signals: Sequence[int],
    ) -> None:
        self._layout = layout
        self._place = place
        self._recovery = recovery
        self._book = book
        self._attempt = attempt
        self._signals = signals
        self._obeyed = 0
        self._silence = HangWatch(recovery.hang_floor_s, recovery.start_timeout_s, time.monotonic())
        self._holding = HoldWatch()
        self.hang: Hang | None = None  # why the ranks were ended
        self.let_go = (
            False  # whether they waited in vain for the job to end, and were asked to exit
        )
        self.hours_spent = False  # whether they were asked to because run.max_gpu_hours is spent

    def keep(self, step: Step, until: float, sleep: Sleep) -> StepEnd:
        """Watch until all ranks have exited; at `until` (monotonic) the hours are spent and they
        are asked to.
        """
        while (end := step.poll()) is None:
            self._obey(step)
            if not self.hours_spent and time.monotonic() >= until:
                self.hours_spent = True
                self._book.note(event_names.NOTICE, why="run.max_gpu_hours")
                step.ask_to_stop()
            beats = heartbeat.read(self._layout.heartbeats, self._attempt)
            self._end_hang(step, beats)
            self._let_go_in_vain(step, beats)
            spent = math.inf if self.hours_spent else max(0.0, until - time.monotonic())
            deadlines = (
                step.seconds_to_deadline(),
                self._recovery.hang_floor_s / LOOKS_PER_FLOOR,
                spent,
            )
            sleep(min(seconds for seconds in deadlines if seconds is not None), step.files())
        return end

    def _obey(self, step: Step) -> None:
        """A stop signal asks the ranks to save; Ctrl-C after that kills them.

        Only a second Ctrl-C shows impatience: a parent with threads sends SIGTERM more than once
        when it dies.
        """
        for number in self._signals[self._obeyed :]:
            self._obeyed += 1
            self._book.note(event_names.NOTICE, signal=signal.Signals(number).name)
            wake.wake_watchdog(self._layout)
            step.kill() if number == signal.SIGINT and self._obeyed > 1 else step.ask_to_stop()

    def _end_hang(self, step: Step, beats: Mapping[str, heartbeat.Beat]) -> None:
        """End ranks that are silent for too long, after saving their stacks."""
        if self.hang is not None or (hang := self._silence.look(beats, time.monotonic())) is None:
            return
        self.hang = hang
        seen = {"phase": hang.phase.value, "step": hang.step, "silent_s": round(hang.silent_s, 1)}
        self._book.note(
            event_names.HANG, attempt=self._attempt, **seen, limit_s=round(hang.limit_s, 1)
        )
        self._place.dump_stacks(self._layout.path, self._layout.stacks(self._attempt))
        step.abort()

    def _let_go_in_vain(self, step: Step, beats: Mapping[str, heartbeat.Beat]) -> None:
        """Ask ranks that wait in vain for the job to end to exit, so that the step restarts."""
        now = time.monotonic()
        if not self._holding.due(beats, now) or not self._holding.in_vain(self._place.going(), now):
            return
        self._book.note(event_names.HELD_IN_VAIN, attempt=self._attempt)
        step.kill() if self.let_go else step.ask_to_stop()
        self.let_go = True
