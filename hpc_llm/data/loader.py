"""Batches as tensors: what one rank sees in each pass of an optimizer step. The only state is the
step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from hpc_llm.data.samples import Samples
from hpc_llm.data.stream import Heldout, Stream
from hpc_llm.planning.batch import accumulation, pass_rows

_CHUNK_TOKENS = (
    1 << 18
)  # read at once: passing on less would cost more than reading it; 2 MB as int64
_CHUNK_STEPS = 16  # at most, since small steps are read fast enough
_CHUNKS_AHEAD = 2
_NOTHING = -1  # a row that a pass lacks, or that lies beyond the end of the text

Passes = list[
    tuple[torch.Tensor, ...]
]  # per pass: tokens, targets int64, where packed documents int32; see Batches


@dataclass(frozen=True)
class Share:
    """Which rows of each global batch a rank computes, pass by pass. It does not change the
    mathematics.
    """

    rank: int
    world_size: int
    global_batch: int  # sequences
    micro_batch: int  # sequences per rank and pass

    @property
    def num_passes(self) -> int:
        return accumulation(self.global_batch, self.world_size, self.micro_batch)

    def rows(self) -> np.ndarray:
        """Rows of the global batch: int64 [num_passes, micro_batch], _NOTHING where the batch does
        not divide.
        """
        rows = np.full((self.num_passes, self.micro_batch), _NOTHING)
        for index, own in enumerate(rows):
            first, end = pass_rows(
                self.global_batch, self.world_size, self.micro_batch, self.rank, index
            )
            own[: end - first] = np.arange(first, end)
        return rows


@dataclass(frozen=True)
class _Chunk:
    """Steps that are read together."""

    steps: range
    passes: Future[list[Passes]]


class Batches:
    """Training batches of one rank: a function of (seed, step), with the next steps read ahead in a
    thread.

    A pass is tokens and targets, and with packing also documents, each [micro_batch, seq_len].
    During sequence-length warm-up each sample is seen as seq_len ÷ length sequences: [micro_batch ·
    seq_len ÷ length, length]. `pinned` puts tensors into pinned memory, from which a GPU can copy
    by itself. Close it, or use it in a `with`.
    """

    def __init__(self, stream: Stream, share: Share, pinned: bool = False) -> None:
        self._stream = stream
        self._rows = share.rows()
        self._pinned = pinned
        step_tokens = self._rows.size * stream.samples[0].seq_len
        self._chunk_steps = min(max(1, _CHUNK_TOKENS // step_tokens), _CHUNK_STEPS)
        self._chunks: deque[_Chunk] = deque()  # in a row without gaps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def step(self, step: int) -> Passes:
        """Tokens and targets of every pass of optimizer step `step` (from 0).

        Missing rows of a pass are filled with token 0 and target IGNORED.
        """
        while self._chunks and step not in self._chunks[0].steps:
            self._chunks.popleft().passes.cancel()
        if not self._chunks:
            self._ask(range(step, step + 1))  # the first step waits only for itself
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
        """End the thread, after what it is reading now."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, steps: range) -> None:
        self._chunks.append(_Chunk(steps, self._thread.submit(self._read, steps)))

    def _read(self, steps: range) -> list[Passes]:
        """Only the thread calls this."""
        wanted = [self._stream.mixture.step(step) for step in steps]
        sources = np.stack([rows.sources for rows in wanted])  # [steps, global_batch]
        ids = np.stack([rows.samples for rows in wanted])
        tensors = _read(self._stream.samples, sources, ids, self._rows, self._pinned)
        return [
            [
                tuple(_cut(part, self._stream.seq_len(step)) for part in parts)
                for parts in zip(*passes, strict=True)
            ]
            for step, *passes in zip(steps, *tensors, strict=True)
        ]


def heldout_batches(heldout: Heldout, share: Share) -> Iterator[Passes]:
    """The rows that are evaluated in global batches, divided like training batches.

    The last is filled up with IGNORED targets.
    """
    fill = (0, -len(heldout.rows.samples) % share.global_batch)
    sources = np.pad(heldout.rows.sources, fill, constant_values=_NOTHING).reshape(
        -1, 1, share.global_batch
    )
    ids = np.pad(heldout.rows.samples, fill).reshape(sources.shape)
    for batch in zip(sources, ids, strict=True):
        yield list(
            zip(
                *(part[0] for part in _read(heldout.samples, *batch, share.rows(), False)),
                strict=True,
            )
        )


def _read(
    samples: Sequence[Samples], sources: np.ndarray, ids: np.ndarray, rows: np.ndarray, pinned: bool
) -> list[torch.Tensor]:
    """Sources and ids of global batches [steps, global_batch] → tokens, targets and, where packed,
    documents.

    Each is [steps, passes, micro_batch, seq_len].
    """
    own_sources = np.where(rows == _NOTHING, _NOTHING, sources[:, rows]).ravel()
    own_ids = ids[:, rows].ravel()
    arrays = samples[0].blank(len(own_ids))
    for source, reader in enumerate(samples):
        places = np.flatnonzero(own_sources == source)
        if len(places):
            reader.read(own_ids[places], arrays, places)
    arrays = samples[0].finish(arrays, own_sources == _NOTHING)
    tensors = [
        torch.from_numpy(array)
        for array in (arrays.tokens, arrays.targets, arrays.documents)
        if array is not None
    ]
    if pinned:
        tensors = [tensor.contiguous().pin_memory() for tensor in tensors]
    return [tensor.view(len(sources), *rows.shape, -1) for tensor in tensors]


def _cut(part_BS: torch.Tensor, length: int) -> torch.Tensor:
    """Sequences of seq_len as a larger number of sequences of `length`."""
    return part_BS if part_BS.shape[1] == length else part_BS.reshape(-1, length)
