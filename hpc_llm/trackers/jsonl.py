"""metrics.jsonl: one JSON object per step with exact numbers, cut back on resume."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hpc_llm.storage.files import append_whole, no_room, write_atomic
from hpc_llm.trackers.protocol import Row

log = logging.getLogger(__name__)
_MOST_WAITING = 100_000  # rows, of about 350 bytes


class JsonlTracker:
    """Appends rows to `path`, each in one write; `before_write` may refuse (the fence).

    A full disk does not end training: rows that find no room are kept in memory, and written once
    there is room.
    """

    def __init__(self, path: Path, start_step: int, before_write: Callable[[], None]) -> None:
        cut_back(path, start_step)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._before_write = before_write
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)

    def log(self, row: Row) -> None:
        self._before_write()
        self._waiting.append(json.dumps(row).encode() + b"\n")
        self._write_out()

    def close(self) -> None:
        self._write_out()
        if self._waiting:
            log.warning("no room for %d rows of metrics: they are lost", len(self._waiting))
        os.close(self._file)

    def _write_out(self) -> None:
        held_up = len(self._waiting) > 1
        try:
            while self._waiting:
                append_whole(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not no_room(error):
                raise
            if not held_up:
                log.warning(
                    "metrics cannot be written (%s); they are kept until there is room",
                    error.strerror,
                )


def read(path: Path) -> list[Row]:
    """All complete rows of a metrics file; none if there is no file."""
    rows: list[Row] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # cut short by a crash
            continue
    return rows


def cut_back(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`: the run computes them again."""
    rows = read(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.exists():
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
