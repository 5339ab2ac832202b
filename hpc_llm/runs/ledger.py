"""What happened to a run: one append-only JSON-lines file per writer, merged on read.

One file per writer, so that no two processes ever append to the same file (network file systems do
not promise atomic appends).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.storage.files import append_line


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
        self.folder, self.writer = folder, writer

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the present time."""
        self.write_at(time.time(), event, **facts)

    def write_at(self, time_s: float, event: str, **facts: Any) -> None:
        """Append one event that happened at `time_s` (since the epoch)."""
        line = json.dumps({"time": round(time_s, 3), "event": event, **facts})
        append_line(self.folder / f"{self.writer}.jsonl", line)


def read(folder: Path) -> list[Event]:
    """All events in the order of their times; a last line cut short by a crash is passed over."""
    events = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                fields = json.loads(line)
                events.append(Event(float(fields.pop("time")), fields.pop("event"), path.stem, fields))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return sorted(events, key=lambda event: event.time)
