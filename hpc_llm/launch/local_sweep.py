"""The runs of a sweep on this machine, cluster.array_throttle at once: frozen together, each with its supervisor."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from hpc_llm.config.schema import RunConfig
from hpc_llm.launch import chain, local
from hpc_llm.launch.submission import examine_all
from hpc_llm.recovery.causes import ExitCode
from hpc_llm.runs import dependency, freeze, lock
from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage.files import restrict_access

_POLL_S = 0.2

Start = Callable[[RunLayout], "subprocess.Popen[bytes]"]


def run(configs: Sequence[RunConfig], words: list[str]) -> int:
    """All of them to their end; those that are complete are left alone, and one that fails stops no other.

    Exit status: 0 all complete, 1 some failed, 130 stopped. InputError as for a single run, before any has begun.
    """
    local.refuse_login_node(configs[0])
    restrict_access(configs[0].run.group)
    local.prepare(configs)
    plans = examine_all(configs)
    for config in configs:
        chain.require_complete(config)
    layouts = [freeze.layout_for(config) for config in configs]
    busy = [layout for layout in layouts if lock.held(layout)]
    for layout in busy:
        _say(f"{layout.name}: {lock.HELD}")
    pairs = zip(configs, plans, layouts, strict=True)
    frozen = freeze.freeze_all([(config, plan) for config, plan, layout in pairs if layout not in busy])
    for run in frozen:
        if run.other_code and not dependency.complete(run.layout):
            _say(f"{run.layout.name}: {freeze.OTHER_CODE}")
    todo = [layout for layout in layouts if layout not in busy and not dependency.complete(layout)]
    for layout in todo:
        local.note(layout, words)
    for config in {config.optim.name: config for config in configs}.values():
        local.build(config)  # once, before several ranks would
    at_once = configs[0].cluster.array_throttle or 1
    _say(f"{len(todo)} of {len(layouts)} runs to do, {at_once} at once, in {layouts[0].path.parent}")
    return _Crew(todo, at_once, local.supervise).work()


class _Crew:
    """Supervisors at work. A stop signal reaches all that run, and none begins after it."""

    def __init__(self, todo: Sequence[RunLayout], at_once: int, start: Start) -> None:
        self._todo, self._at_once, self._start = deque(todo), at_once, start
        self._running: dict[subprocess.Popen[bytes], RunLayout] = {}
        self._asked: list[int] = []  # stop signals; a second Ctrl-C makes a supervisor leave at once
        self._passed_on = 0

    def work(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda got, _: self._asked.append(got))
        statuses = []
        while self._running or (self._todo and not self._asked):
            while self._todo and len(self._running) < self._at_once and not self._asked:
                layout = self._todo.popleft()
                self._running[self._start(layout)] = layout
                _say(f"{layout.name}: started")
            self._pass_on()
            statuses += self._ended()
            time.sleep(_POLL_S)
        if self._asked:
            return 130
        return 1 if any(statuses) else 0

    def _pass_on(self) -> None:
        """Here and not in the handler, which may come while a child is started and not yet known."""
        for number in self._asked[self._passed_on :]:
            self._passed_on += 1
            for child in self._running:
                child.send_signal(local.as_passed_on(number))

    def _ended(self) -> list[int]:
        """Exit statuses of those that have left since the last look."""
        gone = [child for child in self._running if child.poll() is not None]
        for child in gone:
            layout = self._running.pop(child)
            word = {0: "complete", ExitCode.STOPPED: "stopped"}.get(child.returncode, "failed")
            _say(
                f"{layout.name}: {word}"
                + (f"; python -m hpc_llm.status {layout.path} --logs says why" if word == "failed" else "")
            )
        return [child.returncode for child in gone]


def _say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
