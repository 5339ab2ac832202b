"""One preparation of a folder at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from hpc_llm.config.errors import InputError


@contextmanager
def locked(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time, by a lock file beside `directory`; `on_wait` is called if another process holds it.

    InputError if the lock cannot be made there. The lock ends with its process.
    """
    lock = filelock.FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        on_wait()
        lock.acquire()
    except OSError as error:
        raise InputError(f"data.out={directory}: cannot be written: {error.strerror}; name another folder") from None
    try:
        yield
    finally:
        lock.release()
