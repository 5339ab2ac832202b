"""Which files may be obeyed: those that this user wrote, and that nobody else can change.

A watchdog runs the scripts and commands that it finds below a root, as its user. What another user
could have written there is looked at and shown, but never obeyed. Standard library only.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from hpc_llm.config.errors import InputError

_ROOT = 0  # can change every file anyway
_said: set[str] = set()


def distrusted(path: Path) -> str | None:
    """Why what stands in the file or folder `path` must not be obeyed; None if it may be.

    Links are followed: who may write where a link lies is asked of the folder that holds it. Where
    access lists are in use, the group's bits show what the list allows at most. OSError if it
    cannot be looked at.
    """
    state = path.stat()
    if state.st_uid not in (os.geteuid(), _ROOT):
        return f"{path} belongs to {user_name(state.st_uid)}"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {path}; if nobody has: chmod go-w {path}"
    return None


def first_distrusted(paths: Iterable[Path]) -> str | None:
    """The first reason of `distrusted`; what is not there gives none."""
    for path in paths:
        try:
            reason = distrusted(path)
        except FileNotFoundError:
            continue
        if reason is not None:
            return reason
    return None


def own_name(folder: Path) -> Path:
    """`folder`, or where that is another user's, the one beside it that is this user's."""
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        return folder
    if owner == os.geteuid():
        return folder
    return folder.with_name(f"{folder.name}-{os.geteuid()}")


def own_folder(folder: Path) -> Path:
    """`own_name`, made if it is not there, for what will be executed.

    InputError if others can write to it.
    """
    own = own_name(folder)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    reason = distrusted(own)
    if reason is not None:
        raise InputError(f"{reason}, after removing what is in it, which is executed")
    return own


def passed_over(what: Path, reason: str) -> None:
    """Say on stderr, once per process, that `what` is not obeyed."""
    line = f"{what}: passed over: {reason}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def user_name(uid: int) -> str:
    """The name of a user; `user 1234` where it is not known here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
