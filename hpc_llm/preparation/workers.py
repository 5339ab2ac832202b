"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar

from hpc_llm.config.schema import Auto

R = TypeVar("R")


class Workers:
    """`count` processes, or none if that is 1: then the caller does the work itself.

    Use it in a `with`.
    """

    def __init__(self, count: int | Auto) -> None:
        self.count = len(os.sched_getaffinity(0)) if count == "auto" else max(1, count)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            # spawn: a fork would copy the locks of numpy's and the caller's threads
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin)
            for _ in range(self.count):
                self._pool.submit(os.getpid)  # they start while files are listed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def alone(self) -> bool:
        return self._pool is None

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """`function()` in a process of the pool; it must not be `alone`."""
        assert self._pool is not None
        return self._pool.submit(function)


def _begin() -> None:
    """End with the parent: a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    # numpy and sentencepiece, before the first job comes
    import hpc_llm.preparation.tokenise  # noqa: F401
