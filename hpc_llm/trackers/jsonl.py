"""metrics.jsonl: one JSON object per step, the exact numbers, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hpc_llm.storage.files import write_atomic
from hpc_llm.trackers.protocol import Row


class JsonlTracker:
    """Appends rows to `path`, each in one write; `before_write` may refuse (the fence)."""

    def __init__(self, path: Path, start_step: int, before_write: Callable[[], None]) -> None:
        cut_back(path, start_step)
        self._file = path.open("ab", buffering=0)
        self._before_write = before_write

    def log(self, row: Row) -> None:
        self._before_write()
        self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Row]:
    """All whole rows of a metrics file; none if there is no file."""
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
