"""Retry what a shared file system temporarily refuses. Standard library only."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from hpc_llm.storage.files import no_room

PATIENCE_S = 300.0  # enough for a failover of a metadata server, or for freeing space
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
# Errors of a server or a mount, not of the request itself.
_PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.ESHUTDOWN,
        errno.EREMOTEIO,
        errno.ENOLCK,
    }
)
T = TypeVar("T")


def passing(error: OSError) -> bool:
    """Whether a retry may well succeed."""
    return error.errno in _PASSING or no_room(error)


def patiently(action: Callable[[], T], sleep: Callable[[float], object] = time.sleep) -> T:
    """The result of `action`, retried after temporary errors for PATIENCE_S, with longer pauses."""
    deadline = time.monotonic() + PATIENCE_S
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            if not passing(error) or time.monotonic() >= deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
