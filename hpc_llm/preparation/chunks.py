"""A corpus divided into pieces of work: a function of the files and their sizes alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_llm.config.schema import ReadingConfig
from hpc_llm.text.reading import Span, divisible
from hpc_llm.text.sources import InputFile

# Aimed at: many against the number of processes, few against the inodes of a file system.
_NUM_CHUNKS = 2048
_LEAST_BYTES = 1 << 20
_MOST_BYTES = 1 << 28  # a chunk is what a killed process loses: about a minute of work


@dataclass(frozen=True)
class Chunk:
    """Consecutive spans of one source, processed by one process at once."""

    source: str
    spans: tuple[Span, ...]
    num_bytes: int  # on disk


def divide(files: Sequence[InputFile], readings: Mapping[str, ReadingConfig]) -> list[Chunk]:
    """The chunks of a corpus, in the order of `files`."""
    total = sum(file.num_bytes for file in files)
    size = min(max(total // _NUM_CHUNKS, _LEAST_BYTES), _MOST_BYTES)
    chunks: list[Chunk] = []
    for file in files:
        for span, num_bytes in _spans(file, size, divisible(file, readings[file.source])):
            last = chunks[-1] if chunks else None
            if last and last.source == file.source and last.num_bytes + num_bytes <= size:
                chunks[-1] = Chunk(last.source, (*last.spans, span), last.num_bytes + num_bytes)
            else:
                chunks.append(Chunk(file.source, (span,), num_bytes))
    return chunks


def _spans(file: InputFile, size: int, divisible: bool) -> Iterator[tuple[Span, int]]:
    if not divisible or file.num_bytes <= size:
        yield Span(file), file.num_bytes
        return
    count = -(-file.num_bytes // size)
    bounds = [file.num_bytes * number // count for number in range(count + 1)]
    for start, end in itertools.pairwise(bounds):
        yield Span(file, start, end), end - start
