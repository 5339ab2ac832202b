"""One submission at a time: below a root, or of one search."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from hpc_llm.config.errors import InputError
from hpc_llm.storage.locks import locked

SILENT_S = 2.0  # a wait that lasts longer is told of
PATIENCE_S = 120.0  # another submission, or a pass of the watchdog, takes seconds


@contextlib.contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file within. InputError if another process does for PATIENCE_S; `busy` says what is under way."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(path, SILENT_S))
        except Timeout:
            print(f"{busy}; waiting {PATIENCE_S:.0f} s for it at most", file=sys.stderr)
            try:
                held.enter_context(locked(path, PATIENCE_S))
            except Timeout:
                raise InputError(f"{busy}, and was not over in {PATIENCE_S:.0f} s; try again") from None
        yield
