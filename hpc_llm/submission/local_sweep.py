"""The runs of a sweep on this machine, cluster.array_throttle at once.

They are frozen together, and each has its own supervisor.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence

from hpc_llm.config import hints
from hpc_llm.runs import attempts, freeze
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import is_held
from hpc_llm.submission import dependency, prerequisites
from hpc_llm.submission.examine import examine_again
from hpc_llm.submission.local import (
    STOP_SIGNALS,
    as_passed_on,
    record_begun,
    refuse_login_node,
    supervise,
)

_POLL_S = 0.2

Start = Callable[[RunLayout], "subprocess.Popen[bytes]"]


def run_sweep(runs: Sequence[PlannedRun], argv: list[str]) -> int:
    """Train all runs to their end.

    Those that are complete are left alone, and one that fails stops no other. Exit status: 0 all
    complete, 1 some failed, 130 stopped. InputError as for a single run, before any has begun.
    """
    first = runs[0].config
    refuse_login_node(first)
    restrict_access(first.run.group)
    prerequisites.prepare(runs)
    runs = examine_again(runs)
    for run in runs:
        dependency.require_complete(run.config)
    todo = _freeze_idle(runs)
    for layout in todo:
        record_begun(layout, argv)
    for config in {run.config.optim.name: run.config for run in runs}.values():
        prerequisites.build(config)  # once, before several ranks would
    at_once = first.cluster.array_throttle or 1
    folder = runs[0].layout.path.parent
    _print(f"{len(todo)} of {len(runs)} runs to do, {at_once} at once, in {folder}")
    return Supervisors(todo, at_once, supervise).work()


def _freeze_idle(runs: Sequence[PlannedRun]) -> list[RunLayout]:
    """Freeze all runs but those that are trained elsewhere; those of them that are not complete."""
    idle = []
    for run in runs:
        if is_held(run.layout.lock):
            _print(f"{run.layout.name}: {attempts.TRAINED_ELSEWHERE}")
        else:
            idle.append(run)
    todo = []
    for frozen in freeze.freeze_all(idle):
        if dependency.complete(frozen.layout):
            continue
        todo.append(frozen.layout)
        if frozen.other_code:
            _print(f"{frozen.layout.name}: {freeze.OTHER_CODE}")
    return todo


class Supervisors:
    """Supervisors at work, so many at once.

    A stop signal reaches all of them, and none begins after it.
    """

    def __init__(self, todo: Sequence[RunLayout], at_once: int, start: Start) -> None:
        self._todo = deque(todo)
        self._at_once = at_once
        self._start = start
        self._running: dict[subprocess.Popen[bytes], RunLayout] = {}
        # Signals that asked to stop; a second Ctrl-C makes a supervisor leave at once.
        self._asked: list[int] = []
        self._passed_on = 0

    def work(self) -> int:
        """Run them all; 0 if all have left with 0, 1 if one has not, 130 if they were stopped."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda got, _: self._asked.append(got))
        statuses = []
        while self._running or (self._todo and not self._asked):
            while self._todo and len(self._running) < self._at_once and not self._asked:
                layout = self._todo.popleft()
                self._running[self._start(layout)] = layout
                _print(f"{layout.name}: started")
            self._pass_on()
            statuses += self._ended()
            time.sleep(_POLL_S)
        if self._asked:
            return 130
        return 1 if any(statuses) else 0

    def _pass_on(self) -> None:
        """Pass signals on.

        Not in the handler, which may be called while a child has been started and is not yet known.
        """
        for number in self._asked[self._passed_on :]:
            self._passed_on += 1
            for child in self._running:
                child.send_signal(as_passed_on(number))

    def _ended(self) -> list[int]:
        """Exit statuses of those that have left since the last look."""
        statuses = []
        for child, layout in list(self._running.items()):
            status = child.poll()
            if status is not None:
                del self._running[child]
                statuses.append(status)
                _print(f"{layout.name}: {_outcome(status, layout)}")
        return statuses


def _outcome(status: int, layout: RunLayout) -> str:
    if status == 0:
        return "complete"
    if status == ExitCode.STOPPED:
        return "stopped"
    return f"failed; {hints.command('status', str(layout.path), '--logs')} says why"


def _print(line: str) -> None:
    print(line, flush=True)
