"""Batches as tensors: what one rank sees in each pass of an optimizer step.

The only state is the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from hpc_llm.data.samples import Samples
from hpc_llm.data.stream import Heldout, Stream
from hpc_llm.planning.batch import accumulation, pass_rows

# Read at once: passing on less would cost more than reading it; 2 MB as int64.
_CHUNK_TOKENS = 1 << 18
_CHUNK_STEPS = 16  # at most, since small steps are read fast enough
_CHUNKS_AHEAD = 2
_LONG_S = 1.0  # a wait for a batch that is worth telling of
_NOTHING = -1  # a row that a pass lacks, or that lies beyond the end of the text

# Of each pass tokens and targets int64, and where packed documents int32; see Batches.
Passes = list[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Share:
    """Which rows of each global batch a rank computes, pass by pass.

    It does not change the mathematics.
    """

    rank: int
    world_size: int
    global_batch: int  # sequences
    micro_batch: int  # sequences per rank and pass

    @property
    def num_passes(self) -> int:
        return accumulation(self.global_batch, self.world_size, self.micro_batch)

    def rows(self) -> np.ndarray:
        """Rows of the global batch: int64 [num_passes, micro_batch].

        _NOTHING where the batch does not divide.
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
    """Training batches of one rank, a function of (seed, step); a thread reads the next ones.

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

    def step(self, step: int, waiting: Callable[[], None] = lambda: None) -> Passes:
        """Tokens and targets of every pass of optimizer step `step` (from 0).

        Missing rows of a pass are filled with token 0 and target IGNORED. `waiting` is called once
        if they are still being read a second later.
        """
        while self._chunks and step not in self._chunks[0].steps:
            self._chunks.popleft().passes.cancel()
        if not self._chunks:
            self._ask(range(step, step + 1))  # the first step waits only for itself
        while len(self._chunks) <= _CHUNKS_AHEAD:
            end = self._chunks[-1].steps.stop
            self._ask(range(end, end + self._chunk_steps))
        chunk = self._chunks[0]
        if not chunk.passes.done() and wait([chunk.passes], _LONG_S).not_done:
            waiting()
        return chunk.passes.result()[step - chunk.steps.start]

    def samples(self, step: int) -> list[tuple[str, int]]:
        """Source and sample of every row of the global batch of `step`."""
        rows = self._stream.mixture.step(step)
        names = [source.name for source in self._stream.mixture.sources]
        samples = []
        for source, sample in zip(rows.sources.tolist(), rows.samples.tolist(), strict=True):
            samples.append((names[source], sample))
        return samples

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
        sources = []
        ids = []
        for step in steps:
            rows = self._stream.mixture.step(step)
            sources.append(rows.sources)
            ids.append(rows.samples)
        tensors = _read(
            self._stream.samples, np.stack(sources), np.stack(ids), self._rows, self._pinned
        )
        batches = []
        for step, *of_step in zip(steps, *tensors, strict=True):
            length = self._stream.seq_len(step)
            passes = []
            for of_pass in zip(*of_step, strict=True):
                passes.append(tuple(_cut(tensor, length) for tensor in of_pass))
            batches.append(passes)
        return batches


def heldout_batches(heldout: Heldout, share: Share) -> Iterator[Passes]:
    """The rows that are evaluated in global batches, divided like training batches.

    The last is filled up with IGNORED targets.
    """
    fill = (0, -len(heldout.rows.samples) % share.global_batch)
    sources = np.pad(heldout.rows.sources, fill, constant_values=_NOTHING)
    sources = sources.reshape(-1, 1, share.global_batch)  # one step at a time
    ids = np.pad(heldout.rows.samples, fill).reshape(sources.shape)
    rows = share.rows()
    for batch_sources, batch_ids in zip(sources, ids, strict=True):
        tensors = _read(heldout.samples, batch_sources, batch_ids, rows, pinned=False)
        yield list(zip(*(tensor[0] for tensor in tensors), strict=True))


def _read(
    samples: Sequence[Samples], sources: np.ndarray, ids: np.ndarray, rows: np.ndarray, pinned: bool
) -> list[torch.Tensor]:
    """Tokens, targets and, where packed, documents: each [steps, passes, micro_batch, seq_len].

    sources, ids: of the rows of global batches [steps, global_batch]. rows: as of `Share.rows`.
    """
    own_sources = np.where(rows == _NOTHING, _NOTHING, sources[:, rows]).ravel()
    own_ids = ids[:, rows].ravel()
    arrays = samples[0].blank(len(own_ids))
    for source, reader in enumerate(samples):
        places = np.flatnonzero(own_sources == source)
        if len(places):
            reader.read(own_ids[places], arrays, places)
    arrays = samples[0].finish(arrays, own_sources == _NOTHING)
    tensors = []
    for array in (arrays.tokens, arrays.targets, arrays.documents):
        if array is None:
            continue
        tensor = torch.from_numpy(array)
        if pinned:
            tensor = tensor.contiguous().pin_memory()
        tensors.append(tensor.view(len(sources), *rows.shape, -1))
    return tensors


def _cut(part_BS: torch.Tensor, length: int) -> torch.Tensor:
    """Sequences of seq_len as a larger number of sequences of `length`."""
    if part_BS.shape[1] == length:
        return part_BS
    return part_BS.reshape(-1, length)
