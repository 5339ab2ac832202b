"""Watches one step until its ranks have exited: stop signals, hangs, GPU-hours, expired holds.

Standard library only.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence

from hpc_llm.runs import event_names, heartbeat, wake
from hpc_llm.runs.ledger import SupervisorLedger
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.hang import Hang, HangWatch, HoldTimeout, shortest_floor_s
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.steps import Step, StepEnd

LOOKS_PER_FLOOR = 8  # checks of the ranks' heartbeats per recovery.hang_floor_s
# Waits until something happens to this process or one of the files, or for so many seconds.
Sleep = Callable[[float, Sequence[int]], None]


class StepWatch:
    """Watches the step of `attempt`, and says afterwards why its ranks were made to end.

    signals: those that this process got; handlers append to it. hang: what was found before the
    ranks were aborted. hold_expired: they waited for an end of the job that did not come, and were
    asked to exit. hours_spent: they were asked to, because run.max_gpu_hours is spent.
    leaves_grace: they were asked to, because Slurm requeues a job that leaves its grace time.
    """

    def __init__(
        self, attempt: RunAttempt, place: Place, book: SupervisorLedger, signals: Sequence[int]
    ) -> None:
        recovery = attempt.config.recovery
        self.signals = signals
        self.hang: Hang | None = None
        self.hold_expired = False
        self.hours_spent = False
        self.leaves_grace = False
        self._attempt = attempt
        self._place = place
        self._book = book
        self._num_obeyed = 0
        self._look_s = shortest_floor_s(recovery.hang_floor_s) / LOOKS_PER_FLOOR
        self._silence = HangWatch(recovery.hang_floor_s, recovery.start_timeout_s, time.monotonic())
        self._hold = HoldTimeout()

    def until_done(self, step: Step, until: float, sleep: Sleep) -> StepEnd:
        """The end of the step, once all ranks have exited.

        until: the monotonic time at which the hours are spent; the ranks are asked to stop then.
        """
        layout = self._attempt.layout
        while (end := step.poll()) is None:
            self._obey_signals(step)
            self._obey_hours(step, until)
            beats = heartbeat.read(layout.heartbeats, self._attempt.number)
            self._end_hang(step, beats)
            self._end_hold(step, beats)
            sleep(self._seconds_to_look(step, until), step.files())
        return end

    def _seconds_to_look(self, step: Step, until: float) -> float:
        seconds = self._look_s
        deadline = step.seconds_to_deadline()
        if deadline is not None:
            seconds = min(seconds, deadline)
        if not self.hours_spent:
            seconds = min(seconds, max(0.0, until - time.monotonic()))
        return seconds

    def _obey_signals(self, step: Step) -> None:
        """A stop signal asks the ranks to save; Ctrl-C after that kills them.

        Only a second Ctrl-C shows impatience: a parent with threads sends SIGTERM more than once
        when it dies.
        """
        for number in self.signals[self._num_obeyed :]:
            self._num_obeyed += 1
            self._book.note(event_names.NOTICE, signal=signal.Signals(number).name)
            wake.wake_watchdog(self._attempt.layout)
            if number == signal.SIGINT and self._num_obeyed > 1:
                step.kill()
            else:
                step.ask_to_stop()

    def _obey_hours(self, step: Step, until: float) -> None:
        if self.hours_spent or time.monotonic() < until:
            return
        self.hours_spent = True
        self._book.note(event_names.NOTICE, why="run.max_gpu_hours")
        step.ask_to_stop()

    def _end_hang(self, step: Step, beats: Mapping[str, heartbeat.Beat]) -> None:
        """End ranks that are silent for too long, after saving their stacks."""
        if self.hang is not None:
            return
        hang = self._silence.look(beats, time.monotonic())
        if hang is None:
            return
        self.hang = hang
        self._book.note(
            event_names.HANG,
            attempt=self._attempt.number,
            phase=hang.phase.value,
            step=hang.step,
            silent_s=round(hang.silent_s, 1),
            limit_s=round(hang.limit_s, 1),
        )
        layout = self._attempt.layout
        self._place.dump_stacks(layout.path, layout.stacks(self._attempt.number))
        step.abort()

    def _end_hold(self, step: Step, beats: Mapping[str, heartbeat.Beat]) -> None:
        """Ask ranks that wait for an end of the job that does not come to exit.

        The step then restarts. Ranks that do not listen to that are killed. In the grace time of a
        preemption they leave as soon as all have saved, where Slurm requeues who does.
        """
        now = time.monotonic()
        if not self._hold.is_due(beats, now):
            return
        if not self.leaves_grace and self._place.requeues_who_leaves():
            self.leaves_grace = True
            step.ask_to_stop()
        if self.leaves_grace:
            return
        if not self._hold.expired(self._place.is_ending(), now):
            return
        self._book.note(event_names.HELD_IN_VAIN, attempt=self._attempt.number)
        if self.hold_expired:
            step.kill()
        else:
            step.ask_to_stop()
        self.hold_expired = True
