"""Durable local files: a reader sees the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import json
import os
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: OSError) -> bool:
    """Whether the cause is lack of space or quota: nothing is broken, and there may be space
    later.
    """
    return error.errno in _NO_ROOM


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write beside `path`, fsync, rename over it, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def link_atomic(path: Path, target: str) -> None:
    """A symbolic link at `path`, instead of the one that may be there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a text file; the first line may be cut. OSError if it cannot be
    read.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read().decode(errors="replace")


def append_line(path: Path, line: str) -> None:
    """Append a line to `path` in a single write, so that readers see it whole.

    OSError if there is no room for all of it; then nothing of it is left.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a writer died
        append_whole(descriptor, b"\n" * torn + line.encode() + b"\n")
    finally:
        os.close(descriptor)


def append_whole(descriptor: int, data: bytes) -> None:
    """Append all of `data` or nothing to a file opened for appending, which no other process
    writes.
    """
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, data) < len(
            data
        ):  # how a file system that fills up says so at first
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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def restrict_access(group: str | None) -> None:
    """Make everything this process creates from now on private, or readable only by `group`.

    KeyError if there is no such group.
    """
    if group is None:
        os.umask(0o077)
    else:
        grp.getgrnam(group)
        os.umask(0o027)


def share_with_group(path: Path, group: str | None) -> None:
    """Give folder `path` to `group`; what is created in it later inherits the group (setgid)."""
    if group is not None:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(0o2750)
