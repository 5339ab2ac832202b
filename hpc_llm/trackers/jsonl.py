"""metrics.jsonl: one JSON object per step with exact numbers, cut back on resume."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hpc_llm.storage.files import append_whole, open_for_lines, write_atomic
from hpc_llm.storage.patience import passing, patiently
from hpc_llm.trackers.protocol import Row

log = logging.getLogger(__name__)
_MOST_WAITING = 100_000  # rows, of about 350 bytes


class JsonlTracker:
    """Appends rows to `path`, each in one write; `before_write` may refuse (the fence).

    Neither a full disk nor a file system that is away for a while ends training: rows that cannot
    be written are kept in memory, and written as soon as they can be.
    """

    def __init__(self, path: Path, start_step: int, before_write: Callable[[], None]) -> None:
        patiently(lambda: cut_back(path, start_step))
        self._path = path
        self._file: int | None = patiently(lambda: open_for_lines(path))
        self._before_write = before_write
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)

    @property
    def num_waiting(self) -> int:
        """Rows that could not be written yet."""
        return len(self._waiting)

    def log(self, row: Row) -> None:
        self._waiting.append(json.dumps(row).encode() + b"\n")
        self._write_out()

    def close(self) -> None:
        self._write_out()
        if self._waiting:
            log.warning("%d rows of metrics could not be written: they are lost", self.num_waiting)
        self._let_go()

    def _write_out(self) -> None:
        if not self._waiting:
            return
        held_up = len(self._waiting) > 1
        try:
            self._before_write()
            if self._file is None:
                self._file = open_for_lines(self._path)
            while self._waiting:
                append_whole(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not passing(error):
                raise
            self._let_go()  # a stale descriptor stays stale
            if not held_up:
                log.warning(
                    "metrics cannot be written (%s); they are kept until they can be",
                    error.strerror,
                )

    def _let_go(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = None


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
