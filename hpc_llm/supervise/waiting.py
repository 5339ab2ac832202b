"""How a supervisor waits: for signals, the end of children, readable files, or time to pass.

    waiting = Waiting(layout.heartbeat)
    with waiting.listening():
        waiting.sleep(60.0)     # until something happens, and for 60 s at most
        waiting.signals         # the stop signals that have come so far

Signal handlers only note their signal; a pipe wakes whoever sleeps. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hpc_llm.runs import orders
from hpc_llm.storage.parent import die_with_parent
from hpc_llm.storage.patience import patiently

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
HEARTBEAT_S = 10.0
T = TypeVar("T")


class Waiting:
    """Waits for one supervisor, and touches its `heartbeat` file meanwhile."""

    def __init__(self, heartbeat: Path) -> None:
        self.signals: list[int] = []
        self._heartbeat = heartbeat
        self._pipe: list[int] = []  # its readable end, once there is one

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """From here on signals are noted, and wake this process."""
        reader, writer = os.pipe()
        self._pipe = [reader]
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda got, _: self.signals.append(got))
        if orders.PARENT in os.environ:  # after the handlers: the parent may be dead already
            die_with_parent(int(os.environ[orders.PARENT]), signal.SIGTERM)
        yield

    def sleep(self, seconds: float, files: Sequence[int] = ()) -> None:
        """Until a signal, a child's end, a readable file, the next heartbeat, or `seconds`."""
        ready, _, _ = select.select([*self._pipe, *files], [], [], min(HEARTBEAT_S, seconds))
        for descriptor in self._pipe:
            if descriptor in ready:
                os.read(descriptor, 4096)
        with contextlib.suppress(OSError):
            self._heartbeat.touch()

    def patiently(self, action: Callable[[], T]) -> T:
        """The result of `action`, once the file system allows it.

        A supervisor survives whatever its ranks survive.
        """
        return patiently(action, self.sleep)
