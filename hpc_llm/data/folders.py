"""One preparation of a folder at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from hpc_llm.config.errors import InputError
from hpc_llm.storage import locks


@contextlib.contextmanager
def locked(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time, by a lock file beside `directory`; `on_wait` is called if another process holds it.

    InputError if the lock cannot be made there. The lock ends with its process.
    """
    path = directory.with_name(f"{directory.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locks.locked(path, timeout=0))
        except filelock.Timeout:
            on_wait()
            held.enter_context(locks.locked(path))
        except OSError as error:
            raise InputError(
                f"data.out={directory}: cannot be written: {error.strerror}; name another folder"
            ) from None
        yield
