"""One process at a time, by a lock file: the kernel takes the lock back when the process dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hpc_llm.storage.no_locks import NO_LOCKS, tell


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file at `path`; filelock.Timeout if another process does for `timeout` seconds, -1 for ever.

    Where the file system has no locks, that is told and this process goes on without. OSError if the file cannot be
    written.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        tell(path, error)
    try:
        yield
    finally:
        held.release()
