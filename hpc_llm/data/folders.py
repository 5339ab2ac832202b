"""Folders that are whole or not there: built beside the target under a lock, renamed into place at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from hpc_llm.config.errors import InputError
from hpc_llm.storage.files import fsync_directory


@contextmanager
def locked(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time, by a lock file beside `directory`; `on_wait` is called if another holds it.

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


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A folder to build in that becomes `directory` at the end of the block, or is removed if that fails.

    Call it under `locked`: it clears away what killed processes left.
    """
    for stale in directory.parent.glob(f"{directory.name}.partial-*"):
        shutil.rmtree(stale)
    folder = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        fsync_directory(folder)
        folder.rename(directory)
        fsync_directory(directory.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
