"""One process at a time, by a lock file: the kernel takes the lock back when its process dies.

    with locked(path):                              # waits for it, for ever or for `timeout_s`
    with one_at_a_time(path, "a submission"):       # for people: announces the wait, and gives up
    with held_by_us(path) as ours:                  # takes it if it is free
    if is_held(path):                               # looks, without taking it

Where a file system has no locks, that is said once and everybody goes on: attempts are fenced by
their numbers, and submissions are announced and looked for. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.storage.files import no_room

# Lustre mounted without `flock`, and NFS whose lock service is down.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_POLL_S = 0.05
SILENT_S = 2.0  # a longer wait is announced
PATIENCE_S = 120.0  # another submission, or a pass of the watchdog, takes seconds
_files_without_locks: set[Path] = set()


class Busy(Exception):
    """Another process holds the lock file."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock file at `path`; wait for it, for ever where `timeout_s` is None.

    Busy if another process holds it for that long; OSError if the file cannot be written.
    """
    began = time.monotonic()
    while True:
        # Opened anew each time: a file that somebody has removed meanwhile keeps nobody out.
        with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            if _lock(descriptor, fcntl.LOCK_EX, path) and os.fstat(descriptor).st_nlink > 0:
                yield
                return
        if timeout_s is not None and time.monotonic() - began >= timeout_s:
            raise Busy(f"{path} is locked by another process")
        time.sleep(_POLL_S)


@contextlib.contextmanager
def one_at_a_time(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file at `path`; `busy` says to people what another process does there.

    InputError if that is not over in two minutes.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, SILENT_S))
        except Busy:
            print(f"{busy}; waiting {PATIENCE_S:.0f} s for it at most", file=sys.stderr)
            try:
                stack.enter_context(locked(path, PATIENCE_S))
            except Busy:
                raise InputError(
                    f"{busy}, and was not over in {PATIENCE_S:.0f} s; try again"
                ) from None
        yield


@contextlib.contextmanager
def one_writer(folder: Path, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file beside `folder`; on_wait is called if another process holds it.

    InputError, which names the configuration's `key`, if the lock file cannot be made there;
    OSError for lack of room.
    """
    path = folder.with_name(f"{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path, timeout_s=0))
        except Busy:
            on_wait()
            stack.enter_context(locked(path))
        except OSError as error:
            if no_room(error):
                raise
            raise InputError(
                f"{key}={folder}: cannot be written: {error.strerror}; name another folder"
            ) from None
        yield


@contextlib.contextmanager
def held_by_us(path: Path) -> Iterator[bool]:
    """Whether the lock at `path` is this process's, for as long as the context lasts.

    True where the file system has no locks: two watchdogs may then submit a run twice in the same
    seconds, and the older job is fenced. OSError if the file cannot be written.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        yield _lock(descriptor, fcntl.LOCK_EX, path)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock at `path`; False where the file system has no locks.

    InputError if that cannot be found out.
    """
    try:
        with _opened(path, os.O_RDONLY) as descriptor:
            return not _lock(descriptor, fcntl.LOCK_SH, path, announce=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(
            f"{path}: cannot be locked ({error.strerror}); is the run somebody else's?"
        ) from None


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, path: Path, announce: bool = True) -> bool:
    """False if another process has it; True also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EACCES: some file systems say so
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(path)) from None
        if announce and path not in _files_without_locks:
            _files_without_locks.add(path)
            print(
                f"{path}: no locks here ({error.strerror}); going on without: start no second one",
                file=sys.stderr,
            )
    return True
