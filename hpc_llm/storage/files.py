"""Durable local files: a reader sees the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: OSError) -> bool:
    """Whether space or quota is lacking: nothing is broken, and there may be space later."""
    return error.errno in _NO_ROOM


def lack_of_room(error: BaseException | None) -> OSError | None:
    """The error of `no_room` behind `error`; archives hide it behind one of their own."""
    while error is not None:
        if isinstance(error, OSError) and no_room(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def private_name(name: str) -> str:
    """A hidden name beside `name` that no other process has: process ids are a machine's own."""
    return f".{name}.{os.uname().nodename}.{os.getpid()}"


@contextlib.contextmanager
def replacing(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path`, durably, when the block ends.

    If the block raises, `path` stays as it was and nothing is left beside it. A lack of room is an
    OSError that names `path`.
    """
    temporary = path.with_name(f"{private_name(path.name)}.tmp")
    try:
        with _created(temporary, buffering) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if full := lack_of_room(error):
            raise OSError(full.errno, full.strerror, str(path)) from error
        raise
    fsync_directory(path.parent)


def _created(path: Path, buffering: int) -> BinaryIO:
    """A new file; what a process that was killed has left there, or a laid link, goes first.

    Nothing is ever written through a link.
    """
    try:
        return path.open("xb", buffering=buffering)
    except FileExistsError:
        path.unlink()
        return path.open("xb", buffering=buffering)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`: a reader sees the old content or the new."""
    if isinstance(data, str):
        data = data.encode()
    with replacing(path) as file:
        file.write(data)


def link_atomic(path: Path, target: str) -> None:
    """Put a symbolic link at `path`, instead of one that may exist.

    It is durable once the folder is fsynced, as write_atomic does for a file beside it.
    """
    temporary = path.with_name(f"{private_name(path.name)}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a text file, whose first line may be cut; OSError if unreadable."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read().decode(errors="replace")


def append_line(path: Path, line: str) -> None:
    """Append a line to `path` in a single write, so that readers see it whole.

    OSError if there is no room for all of it; then nothing of it is left.
    """
    descriptor = open_for_lines(path)
    try:
        append_whole(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def open_for_lines(path: Path) -> int:
    """A descriptor that appends to `path`, never through a link; a torn last line is ended."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":  # a writer died
            append_whole(descriptor, b"\n")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def append_whole(descriptor: int, data: bytes) -> None:
    """Append all of `data` or nothing to a file that no other process writes.

    `descriptor` is opened for appending. OSError if there is no room for all of it.
    """
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        if written < len(data):  # how a file system that fills up says so at first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def fsync_directory(path: Path) -> None:
    """Make renames and new names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO, beat: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of what is left to read of an open file, in hexadecimal.

    `beat` is called with every chunk of it.
    """
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        beat()
    return digest.hexdigest()


def restrict_access(group: str | None) -> None:
    """Make everything this process creates from now on private, or readable only by `group`.

    The group need not be known here: compute nodes and containers often know none of a directory
    service's. It was checked at submission, and what is created inherits the folder's (setgid).
    """
    os.umask(0o077 if group is None else 0o027)


def share_with_group(path: Path, group: str | None) -> None:
    """Give folder `path` to `group`; what is created in it later inherits the group (setgid).

    Where the group's name is not known, the folder has its parent's if that passes it on, and stays
    private otherwise.
    """
    if group is None:
        return
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        if not path.parent.stat().st_mode & stat.S_ISGID:
            path.chmod(0o700)
            return
        number = path.parent.stat().st_gid
    os.chown(path, -1, number)
    path.chmod(0o2750)
