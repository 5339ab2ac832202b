"""Tokens of chunks → shards.

The contents of all shards are planned first, so that shards can be made in parallel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_llm.data.manifest import Shard
from hpc_llm.data.shards import SHARD_TOKENS, ShardFile, dtype_for, shard_name
from hpc_llm.preparation.arrays import read_arrays, write_arrays
from hpc_llm.preparation.split import HELDOUT, TRAIN
from hpc_llm.preparation.tokenise import Tokenised
from hpc_llm.storage.files import private_name

_COUNTED_TOKENS = 1 << 20  # at once: bincount makes 8 bytes of a token
SPLITS = {"train": TRAIN, "heldout": HELDOUT}


@dataclass(frozen=True)
class DocumentRange:
    """Documents [first, last) of those that a chunk has for one split."""

    part: Path  # of tokenise.Tokenised; its tokens lie beside it with .bin
    first: int
    last: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is made."""

    split: str
    source: str
    number: int
    ranges: tuple[DocumentRange, ...]
    num_tokens: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.source, self.number)

    def num_bytes(self, vocab_size: int) -> int:
        """Size of its tokens in the file."""
        return self.num_tokens * dtype_for(vocab_size).itemsize


def plan_shards(
    split: str, source: str, parts: Iterable[tuple[Path, np.ndarray]], most: int = SHARD_TOKENS
) -> list[PlannedShard]:
    """Shards of at most `most` tokens; a longer document has its own.

    parts: each with the lengths [k] of its documents.
    """
    shards: list[PlannedShard] = []
    open_shard = PlannedShard(split, source, 0, (), 0)
    for part, lengths in parts:
        ends = np.cumsum(lengths)
        first = 0
        while first < len(ends):
            before = int(ends[first] - lengths[first])
            last = int(np.searchsorted(ends, before + most - open_shard.num_tokens, side="right"))
            if last == first and open_shard.num_tokens:
                shards.append(open_shard)
                open_shard = PlannedShard(split, source, len(shards), (), 0)
                continue
            last = max(last, first + 1)
            open_shard = dataclasses.replace(
                open_shard,
                ranges=(*open_shard.ranges, DocumentRange(part, first, last)),
                num_tokens=open_shard.num_tokens + int(ends[last - 1]) - before,
            )
            first = last
    if open_shard.num_tokens:
        shards.append(open_shard)
    return shards


def assemble(shard: PlannedShard, vocab_size: int, folder: Path, out: Path) -> int:
    """Make a shard in `folder`, then describe it in `out` (see `assembled`).

    Returns 0: no token is new.
    """
    temporary = private_name(shard.name)
    dtype = dtype_for(vocab_size)
    file = ShardFile(out.parent, temporary, shard.source, dtype)
    counts = np.zeros(vocab_size, np.int64)
    for documents in shard.ranges:
        for tokens, lengths, num_bytes in _runs(documents, SPLITS[shard.split], dtype):
            file.append(tokens, lengths, num_bytes)
            for start in range(0, tokens.size, _COUNTED_TOKENS):
                counted = tokens[start : start + _COUNTED_TOKENS]
                counts += np.bincount(counted, minlength=vocab_size)
    made = dataclasses.replace(file.close(), file=f"{shard.name}.bin")
    for suffix in (".bin", ".idx"):
        (out.parent / (temporary + suffix)).replace(folder / (shard.name + suffix))
    description = json.dumps(dataclasses.asdict(made)).encode()
    write_arrays(out, counts=counts, shard=np.frombuffer(description, np.uint8))
    return 0


def assembled(out: Path) -> tuple[Shard, np.ndarray]:
    """A finished shard, and how often each token occurs in it: int64 [vocab_size]."""
    arrays = read_arrays(out)
    return Shard(**json.loads(arrays["shard"].tobytes())), arrays["counts"]


def _runs(
    documents: DocumentRange, verdict: int, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Tokens, lengths and text bytes of documents, as many at a time as are contiguous."""
    part = Tokenised.read(documents.part)
    ends = np.cumsum(part.lengths)
    own = np.flatnonzero(part.verdicts == verdict)[documents.first : documents.last]
    path = documents.part.with_suffix(".bin")
    num_bytes = path.stat().st_size
    if num_bytes != dtype.itemsize * int(ends[-1]):
        raise ValueError(
            f"{path}: has {num_bytes} bytes; remove {path.parent.parent} and prepare again"
        )
    tokens = np.asarray(np.memmap(path, dtype, mode="r"))
    for run in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1):
        first = int(run[0])
        last = int(run[-1])
        start = int(ends[first]) - int(part.lengths[first])
        lengths = part.lengths[first : last + 1]
        text_bytes = int(part.num_bytes[first : last + 1].sum())
        yield tokens[start : int(ends[last])], lengths, text_bytes
