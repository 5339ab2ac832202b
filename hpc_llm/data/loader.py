"""Batches as tensors: what one rank sees in each pass of an optimizer step. The state is the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from hpc_llm.config.errors import InputError
from hpc_llm.data.order import sample_ids
from hpc_llm.data.shards import ShardSet
from hpc_llm.planning.batch import accumulation, pass_rows

IGNORED = -100  # target of a position that counts for nothing, as in torch's cross_entropy
_NOTHING = -1  # id of a row beyond the end of the text
_BLOCK_SAMPLES = 4096  # permuted at once: a permutation of a few ids costs numpy's overhead many times over

Passes = list[tuple[torch.Tensor, torch.Tensor]]  # per pass: tokens, targets, both int64 [micro_batch, seq_len]


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


class Batches:
    """Training batches of one rank: a function of (seed, step), with the next step read ahead in a thread.

    InputError if the shards hold less than one sample. Close it, or use it in a `with`.
    """

    def __init__(self, shards: ShardSet, seed: int, seq_len: int, share: Share) -> None:
        self._shards, self._seed, self._seq_len, self._share = shards, seed, seq_len, share
        self._num_samples = _at_least_one(shards, seq_len)
        self._block: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._ahead: tuple[int, Future[Passes]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def step(self, step: int) -> Passes:
        """Tokens and targets of every pass of optimizer step `step` (from 0).

        Rows that a pass lacks are filled up with token 0 and target IGNORED.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != step:
            ahead = (step, self._thread.submit(self._read, step))
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        return ahead[1].result()

    def close(self) -> None:
        """End the thread; whatever it reads just now is waited for."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, step: int) -> Passes:
        return _passes(self._shards, self._seq_len, self._ids(step), self._share)

    def _ids(self, step: int) -> np.ndarray:
        """order.samples of `step`, from a block of steps permuted together. Only the thread calls this."""
        size = self._share.global_batch
        steps = max(1, _BLOCK_SAMPLES // size)
        block, within = divmod(step, steps)
        if self._block[0] != block:
            self._block = (block, sample_ids(self._seed, block * steps * size, steps * size, self._num_samples))
        return self._block[1][within * size : (within + 1) * size]


def heldout_batches(shards: ShardSet, seq_len: int, share: Share, num_batches: int) -> Iterator[Passes]:
    """The first `num_batches` global batches of held-out text in file order, dealt out like training batches.

    Fewer where there is less text; the last is filled up with IGNORED targets. InputError if there is not one sample.
    """
    num_samples = _at_least_one(shards, seq_len)
    size = share.global_batch
    for start in range(0, min(num_batches * size, num_samples), size):
        ids = np.arange(start, start + size)
        ids[ids >= num_samples] = _NOTHING
        yield _passes(shards, seq_len, ids, share)


def _passes(shards: ShardSet, seq_len: int, ids: np.ndarray, share: Share) -> Passes:
    """`ids` of a global batch [global_batch] → tokens and targets of each pass of this rank."""
    passes = []
    for rows in share.passes():
        own = ids[rows]
        own = own[own != _NOTHING]
        samples = shards.gather(own, seq_len)
        tokens = np.zeros((share.micro_batch, seq_len), np.int64)
        targets = np.full((share.micro_batch, seq_len), IGNORED, np.int64)
        tokens[: len(own)] = samples[:, :-1]
        targets[: len(own)] = samples[:, 1:]
        passes.append((torch.from_numpy(tokens), torch.from_numpy(targets)))
    return passes


def _at_least_one(shards: ShardSet, seq_len: int) -> int:
    num_samples = shards.num_samples(seq_len)
    if num_samples == 0:
        raise InputError(
            f"train.seq_len={seq_len}: the {shards.split} text in {shards.directory} has {shards.num_tokens} tokens, "
            f"a sample takes {seq_len + 1}; prepare more text, raise data.heldout_fraction, or lower train.seq_len"
        )
    return num_samples
