"""The second pass over a chunk: its documents as token ids, one after the other in one file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpc_llm.config.schema import ReadingConfig
from hpc_llm.data.shards import dtype_for
from hpc_llm.preparation.arrays import read_arrays, write_arrays
from hpc_llm.preparation.chunks import Chunk
from hpc_llm.preparation.scan import DIGEST_BYTES, Scanned, items, reject_line
from hpc_llm.preparation.split import HELDOUT, TRAIN
from hpc_llm.storage.files import replacing, sha256_file
from hpc_llm.text.documents import Document, Filtered, Reject, Rejected
from hpc_llm.text.sources import InputFile
from hpc_llm.text.tokenizer import Tokenizer, open_tokenizer

_CHANGED = "changed while it was being prepared"


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it is passed to workers, which keep it open."""

    path: Path
    eos_token: str | None  # data.eos_token
    sha256: str  # the same path may later hold a different tokenizer

    @classmethod
    def of(cls, path: Path, eos_token: str | None) -> TokenizerFile:
        return cls(path, eos_token, sha256_file(path))


@dataclass(frozen=True)
class Tokenised:
    """The documents in a chunk's file of tokens, in order (arrays [k]), and further rejects."""

    lengths: np.ndarray  # int64: tokens, end of text included
    num_bytes: np.ndarray  # int64: UTF-8 bytes
    verdicts: np.ndarray  # uint8: TRAIN or HELDOUT
    rejects: np.ndarray  # uint8: JSON Lines
    num_rejects: np.ndarray  # int64 []

    def write(self, path: Path) -> None:
        write_arrays(path, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Tokenised:
        return cls(**read_arrays(path))


def tokenise(
    chunk: Chunk,
    reading: ReadingConfig,
    tokenizer: TokenizerFile,
    scanned: Path,
    verdicts: np.ndarray,
    out: Path,
) -> int:
    """Write the chunk's tokens to `out` with .bin, then describe them in `out`; their number.

    `verdicts` (uint8 [n]) says what happens to each document.
    """
    with replacing(out.with_suffix(".bin"), buffering=1 << 20) as file:
        tokens = _Tokens(file, _tokenizer(tokenizer))
        _tokenise(chunk, reading, Scanned.read(scanned), verdicts, tokens)
    tokens.tokenised().write(out)
    return sum(tokens.lengths)


def _tokenise(
    chunk: Chunk, reading: ReadingConfig, scanned: Scanned, verdicts: np.ndarray, tokens: _Tokens
) -> None:
    number = 0
    file = chunk.spans[0].file
    for number, (file, item) in enumerate(items(chunk, reading)):
        if number >= len(verdicts):
            return  # the file has grown
        if verdicts[number] in (TRAIN, HELDOUT):
            digest = scanned.digests[number].tobytes()
            tokens.add(file, item, digest, int(scanned.num_bytes[number]), int(verdicts[number]))
    for missing in range(number + 1, len(verdicts)):
        if verdicts[missing] in (TRAIN, HELDOUT):
            tokens.reject(file, Reject(0, _CHANGED))


@dataclass
class _Tokens:
    """A file of tokens, and a record of its contents."""

    file: BinaryIO
    tokenizer: Tokenizer
    lengths: list[int] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    verdicts: list[int] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)

    def add(
        self,
        file: InputFile,
        item: Document | Reject | Filtered,
        digest: bytes,
        size: int,
        verdict: int,
    ) -> None:
        """Add one document, unless it is no longer the one that was scanned."""
        start = self.file.tell()
        try:
            if not isinstance(item, Document):
                raise Rejected(_CHANGED)
            length = self._write(item, digest)
        except Rejected as rejected:
            self.file.seek(start)
            self.file.truncate()
            self.reject(file, Reject(item.offset, str(rejected), getattr(item, "id", None)))
        else:
            self.lengths.append(length)
            self.num_bytes.append(size)
            self.verdicts.append(verdict)

    def reject(self, file: InputFile, item: Reject) -> None:
        self.rejects.append(reject_line(file.source, file.name, item.offset, item.reason, item.id))

    def tokenised(self) -> Tokenised:
        return Tokenised(
            lengths=np.array(self.lengths, np.int64),
            num_bytes=np.array(self.num_bytes, np.int64),
            verdicts=np.array(self.verdicts, np.uint8),
            rejects=np.frombuffer("".join(self.rejects).encode(), np.uint8),
            num_rejects=np.array(len(self.rejects), np.int64),
        )

    def _write(self, document: Document, digest: bytes) -> int:
        read = hashlib.sha256()
        length = 0
        for ids in self._ids(document, read):
            self.file.write(np.array(ids, dtype_for(self.tokenizer.vocab_size)).tobytes())
            length += len(ids)
        if read.digest()[:DIGEST_BYTES] != digest:
            raise Rejected(_CHANGED)
        if length == 1:
            raise Rejected("the tokenizer leaves nothing of it but end of text")
        return length

    def _ids(self, document: Document, digest: hashlib._Hash) -> Iterator[list[int]]:
        end = self.tokenizer.eos_id
        for ids in self.tokenizer.encode(_hashed(document.pieces, digest)):
            if end in ids:
                raise Rejected("the tokenizer makes end of text of words in it")
            yield ids
        yield [end]


def _hashed(pieces: Iterable[str], digest: hashlib._Hash) -> Iterator[str]:
    for piece in pieces:
        digest.update(piece.encode())
        yield piece


@functools.lru_cache(maxsize=1)
def _tokenizer(file: TokenizerFile) -> Tokenizer:
    return open_tokenizer(file.path.read_bytes(), file.eos_token)
