"""One process at a time, on this machine: the kernel takes the lock back when it dies."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hpc_llm.config.errors import InputError
from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage.no_locks import NO_LOCKS, tell

HELD = "another process is training this run"


@contextlib.contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Whether the lock at `path` is this process's, for as long as the context lasts.

    Where the file system has no locks, it is: attempts are fenced by their numbers, and a submission is announced and
    looked for. What is left is that two watchdogs may submit a run twice in the same seconds; the older job is then
    fenced. OSError if the file cannot be written.
    """
    with path.open("w") as file:
        try:
            ours = _locks(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise OSError(error.errno, error.strerror, str(path)) from None
            tell(path, error)
            ours = True
        yield ours


def held(layout: RunLayout) -> bool:
    """Whether a process trains the run. Ask before anything is written there: it reads what it began with.

    False where the file system has no locks. InputError if the lock cannot be read.
    """
    if not layout.lock.exists():
        return False
    try:
        with layout.lock.open() as file:
            return not _locks(file, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise InputError(f"{layout.lock}: cannot be locked ({error.strerror}); is the run somebody else's?") from None


def _locks(file: IO[str], how: int) -> bool:
    """False if another process has it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EACCES: some file systems say so
        return False
    return True
