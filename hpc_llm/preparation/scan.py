"""The first pass over a chunk: documents' hashes, sizes and faults, and text for the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_llm.config.schema import ReadingConfig
from hpc_llm.preparation.arrays import read_arrays, write_arrays
from hpc_llm.preparation.chunks import Chunk
from hpc_llm.preparation.split import FILTERED, REJECTED, TRAIN
from hpc_llm.text.documents import Document, Filtered, Reject, Rejected
from hpc_llm.text.reading import documents
from hpc_llm.text.sources import InputFile

DIGEST_BYTES = 16  # of SHA-256: a chance of 1e-19 that any two of 1e10 different texts collide


@dataclass
class Scanned:
    """A chunk's documents in order (arrays [n]), its rejects, and stretches of its text."""

    verdicts: np.ndarray  # uint8: TRAIN (so far), REJECTED, FILTERED
    digests: np.ndarray  # uint8 [n, DIGEST_BYTES]
    num_bytes: np.ndarray  # int64: UTF-8 bytes
    rejects: np.ndarray  # uint8: JSON Lines
    stretches: np.ndarray  # uint8: UTF-8, one after the other
    stretch_bytes: np.ndarray  # int64 [m]
    stretch_documents: np.ndarray  # int64 [m]: which document each is from
    stretch_keys: np.ndarray  # uint64 [m]: hash of each

    def write(self, path: Path) -> None:
        write_arrays(path, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Scanned:
        return cls(**read_arrays(path))


def scan(chunk: Chunk, reading: ReadingConfig, sample_share: float, out: Path) -> int:
    """Scan a chunk and write `Scanned` to `out`; returns 0, since there are no tokens yet.

    Stretches of text are kept if their hash is in the lowest `sample_share` of all.
    """
    notes = _Notes(sample_share)
    for file, item in items(chunk, reading):
        notes.add(file, item, reading)
    notes.scanned().write(out)
    return 0


def items(
    chunk: Chunk, reading: ReadingConfig
) -> Iterator[tuple[InputFile, Document | Reject | Filtered]]:
    """Every document of a chunk, in the order in which all stages number them."""
    for span in chunk.spans:
        for item in documents(span, reading):
            yield span.file, item


def reject_line(source: str, file: str, offset: int, reason: str, name: str | None) -> str:
    """A line of rejects.jsonl."""
    fields: dict[str, str | int] = {
        "source": source,
        "file": file,
        "offset": offset,
        "reason": reason,
    }
    if name is not None:
        fields["id"] = name
    return json.dumps(fields) + "\n"


@dataclass
class _Notes:
    """What is noted of the documents of a chunk, and the share of their text that is kept."""

    share: float
    verdicts: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)
    stretches: list[tuple[int, int, bytes]] = field(default_factory=list)  # document, key, text

    def add(
        self, file: InputFile, item: Document | Reject | Filtered, reading: ReadingConfig
    ) -> None:
        if isinstance(item, Filtered):
            self._note(FILTERED)
        elif isinstance(item, Reject):
            self._reject(file, item)
        else:
            try:
                self._look(item, reading)
            except Rejected as rejected:
                self._reject(file, Reject(item.offset, str(rejected), item.id))

    def scanned(self) -> Scanned:
        texts = [text for _, _, text in self.stretches]
        return Scanned(
            verdicts=np.array(self.verdicts, np.uint8),
            digests=np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, DIGEST_BYTES),
            num_bytes=np.array(self.num_bytes, np.int64),
            rejects=np.frombuffer("".join(self.rejects).encode(), np.uint8),
            stretches=np.frombuffer(b"".join(texts), np.uint8),
            stretch_bytes=np.array([len(text) for text in texts], np.int64),
            stretch_documents=np.array([number for number, _, _ in self.stretches], np.int64),
            stretch_keys=np.array([key for _, key, _ in self.stretches], np.uint64),
        )

    def _look(self, document: Document, reading: ReadingConfig) -> None:
        digest = hashlib.sha256()
        num_bytes = 0
        num_chars = 0
        blank = True
        stretches: list[tuple[int, int, bytes]] = []
        for piece in document.pieces:
            text = _utf8(piece)
            digest.update(text)
            num_bytes += len(text)
            num_chars += len(piece)
            blank = blank and piece.isspace()
            # Of other bytes of the hash than those that decide what is held out.
            key = int.from_bytes(digest.copy().digest()[DIGEST_BYTES:24], "little")
            if key < self.share * 2**64:
                stretches.append((len(self.verdicts), key, text))
        if blank:
            raise Rejected("empty")
        fewest = reading.min_chars or 0
        most = reading.max_chars or num_chars
        if not fewest <= num_chars <= most:
            self._note(FILTERED)
            return
        self.stretches += stretches
        self._note(TRAIN, digest.digest()[:DIGEST_BYTES], num_bytes)

    def _reject(self, file: InputFile, item: Reject) -> None:
        self.rejects.append(reject_line(file.source, file.name, item.offset, item.reason, item.id))
        self._note(REJECTED)

    def _note(self, verdict: int, digest: bytes = bytes(DIGEST_BYTES), num_bytes: int = 0) -> None:
        self.verdicts.append(verdict)
        self.digests.append(digest)
        self.num_bytes.append(num_bytes)


def _utf8(piece: str) -> bytes:
    try:
        return piece.encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"half a surrogate pair at character {error.start}") from None
