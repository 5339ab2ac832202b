"""What happened to a run: one append-only JSON-lines file per writer, merged on read.

One file per writer, so that no two processes ever append to the same file (network file systems do
not promise atomic appends).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.storage.files import append_line
from hpc_llm.storage.patience import passing, patiently

_MOST_WAITING = 10_000


@dataclass(frozen=True)
class Event:
    """A line of the ledger. `time` is seconds since the epoch."""

    time: float
    event: str  # submitted, started, resumed, checkpointed, save-failed, ended, completed, …
    writer: str
    facts: dict[str, Any]


class Ledger:
    """The ledger folder of a run, written as `writer` (submit, supervisor-0003, train-0003, …)."""

    def __init__(self, folder: Path, writer: str) -> None:
        self.folder = folder
        self.writer = writer

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the current time."""
        self.write_at(time.time(), event, **facts)

    def write_at(self, time_s: float, event: str, **facts: Any) -> None:
        """Append one event that happened at `time_s` (since the epoch)."""
        self._append(json.dumps({"time": round(time_s, 3), "event": event, **facts}))

    def _append(self, line: str) -> None:
        append_line(self.folder / f"{self.writer}.jsonl", line)


class PatientLedger(Ledger):
    """A ledger whose writer survives a full disk, and a file system that is away for a while.

    Events that could not be written are written before the next one.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        super().__init__(folder, writer)
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)

    def _append(self, line: str) -> None:
        self._waiting.append(line)
        try:
            self._settle()
        except OSError as error:
            if not passing(error):
                raise

    def _settle(self) -> None:
        """Write what waits."""
        while self._waiting:
            super()._append(self._waiting[0])
            self._waiting.popleft()


class SupervisorLedger(PatientLedger):
    """A ledger whose writer survives temporary file-system errors.

    sleep: waits for the given seconds, or less.
    """

    def __init__(self, folder: Path, writer: str, sleep: Callable[[float], object]) -> None:
        super().__init__(folder, writer)
        self._sleep = sleep

    def write(self, event: str, **facts: Any) -> None:
        """Append one event that others rely on: it is written when this returns, or OSError."""
        self.note(event, **facts)
        patiently(self._settle, self._sleep)

    def note(self, event: str, **facts: Any) -> None:
        """Append one event that nothing waits for: at once, or with the next."""
        super().write(event, **facts)

    def _append(self, line: str) -> None:
        self._waiting.append(line)
        with contextlib.suppress(OSError):
            self._settle()


def read(folder: Path) -> list[Event]:
    """All events in order of time; a last line truncated by a crash is skipped."""
    events = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                fields = json.loads(line)
                events.append(
                    Event(float(fields.pop("time")), fields.pop("event"), path.stem, fields)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return sorted(events, key=lambda event: event.time)


class SharedLedger(Ledger):
    """A ledger that the run's group may read, or nobody else, under any umask of this process.

    One file that a colleague may not read hides the run from their status.
    """

    def __init__(self, folder: Path, writer: str, group: str | None) -> None:
        super().__init__(folder, writer)
        self._umask = 0o077
        if group is not None:
            self._umask = 0o027

    def _append(self, line: str) -> None:
        before = os.umask(self._umask)
        try:
            super()._append(line)
        finally:
            os.umask(before)
