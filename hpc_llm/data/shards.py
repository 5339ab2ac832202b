"""Shards of tokens: written once, then read through a memory map at random positions."""

from __future__ import annotations

import hashlib
import os
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hpc_llm.config.errors import InputError
from hpc_llm.data.manifest import Manifest, Shard, prepare_command, read_manifest

# Half a GB in uint16: few files, since inodes are scarce on parallel file systems.
SHARD_TOKENS = 256_000_000


def dtype_for(vocab_size: int) -> np.dtype:
    """Little-endian unsigned integers that hold every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def shard_name(split: str, source: str, number: int) -> str:
    """A shard's file name without .bin and .idx."""
    return f"{split}-{source}-{number:05d}"


class ShardFile:
    """One shard being written: `name`.bin and, at the end, `name`.idx in a folder."""

    def __init__(self, directory: Path, name: str, source: str, dtype: np.dtype) -> None:
        self._directory = directory
        self._name = name
        self._source = source
        self._dtype = dtype
        self._file = (directory / f"{name}.bin").open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._offsets = array("Q", [0])
        self._text_bytes = 0

    @property
    def num_tokens(self) -> int:
        return self._offsets[-1]

    def append(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> None:
        """Append documents of `lengths` (int [k]) tokens, one after the other in `tokens`."""
        content = np.ascontiguousarray(tokens, self._dtype).view(np.uint8).data
        self._file.write(content)
        self._digest.update(content)
        self._offsets.frombytes((self.num_tokens + np.cumsum(lengths)).astype(np.uint64).tobytes())
        self._text_bytes += text_bytes

    def close(self) -> Shard:
        """Complete and fsync the files; return their manifest entry."""
        index = np.frombuffer(self._offsets, np.uint64).astype("<u8").tobytes()
        with (self._directory / f"{self._name}.idx").open("wb") as file:
            file.write(index)
            _sync(file)
        _sync(self._file)
        self._file.close()
        return Shard(
            file=f"{self._name}.bin",
            source=self._source,
            tokens=self.num_tokens,
            documents=len(self._offsets) - 1,
            text_bytes=self._text_bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )


class ShardSet:
    """Tokens of one split, of all sources or of one, memory-mapped.

    Sample i at a sequence length is seq_len + 1 consecutive tokens of one shard; samples of a shard
    start every seq_len tokens, so that each token is a target exactly once, except a shard's first
    and its last few.
    """

    def __init__(
        self, directory: Path, split: str, manifest: Manifest, source: str | None = None
    ) -> None:
        self.directory = directory
        self.split = split
        self.manifest = manifest
        self.source = source
        self.shards = manifest.shards_of(split, source)
        self.num_tokens = sum(shard.tokens for shard in self.shards)
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self.arrays = [_map(directory, shard, dtype) for shard in self.shards]
        self._by_length: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    @classmethod
    def open(cls, directory: Path, split: str, source: str | None = None) -> ShardSet:
        """Shards of `split` (train or heldout), of one source or (None) of all.

        Reads no token; InputError if a file is missing or of a wrong size.
        """
        return cls(directory, split, read_manifest(directory), source)

    def num_samples(self, seq_len: int) -> int:
        """Samples of seq_len + 1 tokens."""
        return int(self._windows(seq_len)[1][-1])

    def gather_into(
        self, out: np.ndarray, rows: np.ndarray, sample_ids: np.ndarray, seq_len: int
    ) -> None:
        """Samples `sample_ids` (int [n], each in [0, num_samples)) into rows of `out`.

        rows: int [n], ascending; out: int64 [any, seq_len + 1].
        """
        windows, ends = self._windows(seq_len)
        if len(windows) == 1:
            # Twice as fast as row by row, and faster still without looking up shards.
            out[... if len(rows) == len(out) else rows] = windows[0][sample_ids]
            return
        numbers = np.searchsorted(ends, sample_ids, side="right") - 1
        places = sample_ids - ends[numbers]
        for row, number, place in zip(
            rows.tolist(), numbers.tolist(), places.tolist(), strict=True
        ):
            out[row] = windows[number][place]

    def _windows(self, seq_len: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Samples of each shard as overlapping views [samples, seq_len + 1].

        And how many come before each, and in all: int64 [shards + 1].
        """
        if seq_len not in self._by_length:
            size = np.dtype(self.manifest.dtype).itemsize
            strides = (size * seq_len, size)
            views = []
            counts = [0]
            for tokens in self.arrays:
                count = max(0, (len(tokens) - 1) // seq_len)
                shape = (count, seq_len + 1)
                views.append(as_strided(tokens, shape, strides, writeable=False))
                counts.append(count)
            self._by_length[seq_len] = views, np.cumsum(counts, dtype=np.int64)
        return self._by_length[seq_len]


def _map(directory: Path, shard: Shard, dtype: np.dtype) -> np.ndarray:
    path = directory / shard.file
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; remove {directory} and prepare again: {prepare_command()}"
        ) from None
    expected = shard.tokens * dtype.itemsize
    if num_bytes != expected:
        raise InputError(
            f"{path}: has {num_bytes} bytes, its manifest says {expected}; remove {directory} and "
            f"prepare again: {prepare_command()}"
        )
    # A plain array: slicing a memmap costs several times more.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
