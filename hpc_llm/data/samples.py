"""Samples of one source as arrays: windows of concatenated documents, or packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hpc_llm.data.packs import open_pack
from hpc_llm.data.shards import ShardSet

IGNORED = -100  # target of a position that does not count, as in torch's cross_entropy


@dataclass(frozen=True)
class Arrays:
    """Rows of samples, each [rows, seq_len].

    Rows without data have tokens 0 and targets IGNORED.
    """

    tokens: np.ndarray  # int64
    targets: np.ndarray  # int64: the token after each token, or IGNORED
    # int32: which document of its row a position belongs to, from 1; padding 0
    documents: np.ndarray | None = None
    # [rows, seq_len + 1], where tokens and targets are views of one
    buffer: np.ndarray | None = None


class Samples(Protocol):
    """What a mixture draws from. Object stores would be added here."""

    seq_len: int
    num_samples: int

    def blank(self, num_rows: int) -> Arrays:
        """Rows to read into."""

    def read(self, ids: np.ndarray, arrays: Arrays, rows: np.ndarray) -> None:
        """Samples `ids` (int [n], each in [0, num_samples)) into `rows` of what `blank` gave."""

    def finish(self, arrays: Arrays, empty: np.ndarray) -> Arrays:
        """The rows that were read; nothing was read into those of `empty` (bool [rows])."""


class Concatenated:
    """Sample i is seq_len + 1 consecutive tokens of one shard, across document boundaries."""

    def __init__(self, shards: ShardSet, seq_len: int, mask_boundaries: bool = False) -> None:
        self.seq_len = seq_len
        self._shards = shards
        self._eos = shards.manifest.eos_id if mask_boundaries else None
        self.num_samples = shards.num_samples(seq_len)

    def blank(self, num_rows: int) -> Arrays:
        buffer = np.empty((num_rows, self.seq_len + 1), np.int64)
        return Arrays(buffer[:, :-1], buffer[:, 1:], buffer=buffer)

    def read(self, ids: np.ndarray, arrays: Arrays, rows: np.ndarray) -> None:
        assert arrays.buffer is not None
        self._shards.gather_into(arrays.buffer, rows, ids, self.seq_len)

    def finish(self, arrays: Arrays, empty: np.ndarray) -> Arrays:
        if self._eos is None and not empty.any():
            return arrays
        assert arrays.buffer is not None
        arrays.buffer[empty] = 0
        targets = arrays.targets.copy()
        targets[empty] = IGNORED
        if self._eos is not None:
            targets[arrays.tokens == self._eos] = IGNORED
        return Arrays(arrays.tokens, targets)


class BestFit:
    """Sample i is a packed row: whole documents, or pieces of those that are longer than a row."""

    def __init__(self, shards: ShardSet, seq_len: int) -> None:
        self.seq_len = seq_len
        self._tokens = shards.arrays
        self._packs = [open_pack(shards.directory, shard, seq_len) for shard in shards.shards]
        num_rows = [0, *(len(pack.ends) for pack in self._packs)]
        self._rows_up_to = np.cumsum(num_rows, dtype=np.int64)
        self.num_samples = int(self._rows_up_to[-1])

    def blank(self, num_rows: int) -> Arrays:
        shape = (num_rows, self.seq_len)
        return Arrays(
            tokens=np.zeros(shape, np.int64),
            targets=np.full(shape, IGNORED, np.int64),
            documents=np.zeros(shape, np.int32),
        )

    def read(self, ids: np.ndarray, arrays: Arrays, rows: np.ndarray) -> None:
        numbers = np.searchsorted(self._rows_up_to, ids, side="right") - 1
        for row, sample, number in zip(rows.tolist(), ids.tolist(), numbers.tolist(), strict=True):
            self._read_row(number, sample - int(self._rows_up_to[number]), arrays, row)

    def _read_row(self, number: int, packed_row: int, arrays: Arrays, row: int) -> None:
        pack = self._packs[number]
        tokens = self._tokens[number]
        assert arrays.documents is not None
        first = int(pack.ends[packed_row - 1]) if packed_row else 0
        pieces = slice(first, int(pack.ends[packed_row]))
        starts = pack.starts[pieces].tolist()
        sizes = pack.sizes[pieces].tolist()
        place = 0
        for document, (start, size) in enumerate(zip(starts, sizes, strict=True), 1):
            end = place + size
            arrays.tokens[row, place:end] = tokens[start : start + size]
            arrays.targets[row, place:end] = tokens[start + 1 : start + size + 1]
            arrays.documents[row, place:end] = document
            place = end

    def finish(self, arrays: Arrays, empty: np.ndarray) -> Arrays:
        return arrays
