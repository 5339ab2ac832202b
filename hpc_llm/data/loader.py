"""Batches as tensors: what one rank sees in each pass of an optimizer step. The state is the step alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from hpc_llm.data.samples import Arrays, Samples
from hpc_llm.data.stream import Stream
from hpc_llm.planning.batch import accumulation, pass_rows

_CHUNK_TOKENS = 1 << 18  # read at once: handing over less costs more than reading it; 2 MB as int64
_CHUNKS_AHEAD = 2

Passes = list[tuple[torch.Tensor, ...]]  # per pass: tokens, targets int64, where packed documents int32; see Batches


@dataclass(frozen=True)
class Share:
    """Which rows of each global batch a rank computes, pass by pass. It changes no mathematics."""

    rank: int
    world_size: int
    global_batch: int  # sequences
    micro_batch: int  # sequences per rank and pass

    def passes(self) -> list[slice]:
        """Rows of the global batch in each pass of this rank; short or empty where the batch does not divide."""
        count = accumulation(self.global_batch, self.world_size, self.micro_batch)
        shape = (self.global_batch, self.world_size, self.micro_batch)
        return [slice(*pass_rows(*shape, self.rank, index)) for index in range(count)]


@dataclass(frozen=True)
class _Chunk:
    """Steps that are read together."""

    steps: range
    passes: Future[list[Passes]]


class Batches:
    """Training batches of one rank: a function of (seed, step), with the next steps read ahead in a thread.

    A pass is tokens and targets, with packing documents too, each [micro_batch, seq_len]. While the sequence length is
    warmed up to it, each sample is seen as seq_len ÷ length sequences: [micro_batch · seq_len ÷ length, length].
    `pinned` puts tensors where a GPU can fetch them by itself. Close it, or use it in a `with`.
    """

    def __init__(self, stream: Stream, share: Share, pinned: bool = False) -> None:
        self._stream, self._share, self._pinned = stream, share, pinned
        step_tokens = len(share.passes()) * share.micro_batch * stream.samples[0].seq_len
        self._chunk_steps = max(1, _CHUNK_TOKENS // step_tokens)
        self._chunks: deque[_Chunk] = deque()  # in a row without gaps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def step(self, step: int) -> Passes:
        """Tokens and targets of every pass of optimizer step `step` (from 0).

        Rows that a pass lacks are filled up with token 0 and target IGNORED.
        """
        while self._chunks and step not in self._chunks[0].steps:
            self._chunks.popleft().passes.cancel()
        if not self._chunks:
            self._ask(range(step, step + 1))  # the first step waits for itself alone
        while len(self._chunks) <= _CHUNKS_AHEAD:
            end = self._chunks[-1].steps.stop
            self._ask(range(end, end + self._chunk_steps))
        chunk = self._chunks[0]
        return chunk.passes.result()[step - chunk.steps.start]

    def samples(self, step: int) -> list[tuple[str, int]]:
        """Source and sample of every row of the global batch of `step`."""
        rows = self._stream.mixture.step(step)
        return [
            (self._stream.mixture.sources[source].name, sample)
            for source, sample in zip(rows.sources.tolist(), rows.samples.tolist(), strict=True)
        ]

    def close(self) -> None:
        """End the thread; whatever it reads just now is waited for."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, steps: range) -> None:
        self._chunks.append(_Chunk(steps, self._thread.submit(lambda: [self._read(step) for step in steps])))

    def _read(self, step: int) -> Passes:
        """Only the thread calls this."""
        rows, length = self._stream.mixture.step(step), self._stream.seq_len(step)
        passes = _passes(self._stream.samples, rows.sources, rows.samples, self._share)
        return [tuple(self._tensor(array, length) for array in arrays) for arrays in passes]

    def _tensor(self, array: np.ndarray, length: int) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if length != tensor.shape[1]:
            tensor = tensor.reshape(-1, length)
        return tensor.contiguous().pin_memory() if self._pinned else tensor


def heldout_batches(samples: Samples, share: Share, num_batches: int) -> Iterator[Passes]:
    """The first `num_batches` global batches of held-out text in file order, dealt out like training batches.

    Fewer where there is less text; the last is filled up with IGNORED targets.
    """
    size = share.global_batch
    for start in range(0, min(num_batches * size, samples.num_samples), size):
        ids = np.arange(start, min(start + size, samples.num_samples))
        passes = _passes([samples], np.zeros_like(ids), ids, share)
        yield [tuple(torch.from_numpy(array) for array in arrays) for arrays in passes]


def _passes(
    samples: Sequence[Samples], sources: np.ndarray, ids: np.ndarray, share: Share
) -> list[tuple[np.ndarray, ...]]:
    """Sources and ids of a global batch [≤ global_batch] → the arrays of each pass of this rank."""
    passes = []
    for rows in share.passes():
        own_sources, own_ids = sources[rows], ids[rows]
        arrays = samples[0].blank(share.micro_batch)
        for source, reader in enumerate(samples):
            places = np.flatnonzero(own_sources == source)
            if len(places):
                reader.read(own_ids[places], arrays, places)
        passes.append(_present(samples[0].finish(arrays, len(own_ids))))
    return passes


def _present(arrays: Arrays) -> tuple[np.ndarray, ...]:
    found = (arrays.tokens, arrays.targets)
    return found if arrays.documents is None else (*found, arrays.documents)
