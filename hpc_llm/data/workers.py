"""The work on single documents, spread over processes; results come back in order, whatever the number of processes."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from hpc_llm.config.schema import Auto
from hpc_llm.data import corpus
from hpc_llm.data.shards import dtype_for
from hpc_llm.data.tokenizer import Tokenizer

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Scanned:
    """What one look at a document found: its SHA-256, or why it is rejected."""

    digest: bytes
    num_bytes: int
    reject: str | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of a document, its end-of-text token included, or why it is rejected."""

    tokens: np.ndarray  # [n], the dtype of the shards
    reject: str | None = None


def scan(paths: list[str]) -> list[Scanned]:
    """Read and check documents."""
    return [_scan(path) for path in paths]


def encode(model: str, jobs: list[tuple[str, bytes]]) -> list[Encoded]:
    """Tokenise documents with the model file `model`; a job is a path and the digest that `scan` found."""
    tokenizer = _tokenizer(model)
    return [_encode(tokenizer, path, digest) for path, digest in jobs]


class Workers:
    """Processes that share out calls in order; with one worker, this process does the work itself. Use in a `with`."""

    def __init__(self, count: int | Auto) -> None:
        self.count = len(os.sched_getaffinity(0)) if count == "auto" else max(1, count)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            # spawn: a fork would copy the threads' locks of numpy and of whoever calls us
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_end_with_parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """function(task) of every task, in order; three tasks a worker are under way at most, so memory is bounded."""
        if self._pool is None:
            yield from map(function, tasks)
            return
        under_way: deque[Future[R]] = deque()
        for task in tasks:
            under_way.append(self._pool.submit(function, task))
            if len(under_way) >= 3 * self.count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _scan(path: str) -> Scanned:
    try:
        data, _ = corpus.read(path)
    except corpus.Rejected as rejected:
        return Scanned(b"", 0, str(rejected))
    return Scanned(hashlib.sha256(data).digest(), len(data))


def _encode(tokenizer: Tokenizer, path: str, digest: bytes) -> Encoded:
    dtype = dtype_for(tokenizer.vocab_size)
    try:
        data, text = corpus.read(path)
        if hashlib.sha256(data).digest() != digest:
            raise corpus.Rejected("changed while it was being prepared")
    except corpus.Rejected as rejected:
        return Encoded(np.empty(0, dtype), str(rejected))
    return Encoded(np.array([*tokenizer.encode(text), tokenizer.eos_id], dtype))


@functools.lru_cache(maxsize=1)
def _tokenizer(model: str) -> Tokenizer:
    return Tokenizer(Path(model).read_bytes())


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: leave with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
