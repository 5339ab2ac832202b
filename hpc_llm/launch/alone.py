"""One submission at a time: below a root, or of one search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hpc_llm.config.errors import InputError

PATIENCE_S = 120.0  # another submission, or a pass of the watchdog, takes seconds


@contextlib.contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Hold the lock file within. InputError if another process does for PATIENCE_S, which `busy` begins to say."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=PATIENCE_S)
    except Timeout:
        raise InputError(f"{busy} for {PATIENCE_S:.0f} s; try again") from None
    try:
        yield
    finally:
        held.release()
