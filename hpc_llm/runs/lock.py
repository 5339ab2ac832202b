"""One process at a time, on this machine: the kernel takes the lock back when it dies."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from hpc_llm.runs.layout import RunLayout

HELD = "another process is training this run"


@contextlib.contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Whether the lock at `path` is this process's, for as long as the context lasts."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def held(layout: RunLayout) -> bool:
    """Whether a process trains the run. Ask before anything is written there: it reads what it began with."""
    if not layout.lock.exists():
        return False
    with layout.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
