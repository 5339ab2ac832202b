"""Files of every kind → documents, in file order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from hpc_llm.config.schema import ReadingConfig
from hpc_llm.text import records
from hpc_llm.text.compression import named_errors, opened
from hpc_llm.text.documents import Document, Filtered, Reject, Rejected, cut, decoded
from hpc_llm.text.sources import InputFile

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Span:
    """The documents of a file that begin in bytes [start, end); end None: of the file."""

    file: InputFile
    start: int = 0
    end: int | None = None


def divisible(file: InputFile, reading: ReadingConfig) -> bool:
    """Whether reading can start in the middle of the file, because each document is a line."""
    if file.compression is not None:
        return False
    return file.kind == ".jsonl" or (file.kind == ".txt" and reading.split == "line")


def documents(span: Span, reading: ReadingConfig) -> Iterator[Document | Reject | Filtered]:
    """The documents that begin in `span`.

    A file that breaks off gives one reject for the whole rest.
    """
    read = _text if span.file.kind == ".txt" else _records
    last = None
    try:
        with named_errors():
            for item in read(span, reading):
                last = item
                yield item
    except Rejected as rejected:
        if last is None:
            yield Reject(span.start, str(rejected))
        else:
            yield Reject(last.offset, f"the rest of the file after this: {rejected}")


def _text(span: Span, reading: ReadingConfig) -> Iterator[Document | Filtered]:
    if reading.where:
        yield Filtered(span.start)  # plain text has no fields
        return
    with opened(span.file) as stream:
        if reading.split == "file":
            yield Document(0, decoded(_fragments(stream)))
            return
        lines = _lines(stream, span)
        for offset, line in lines:
            if line.isspace():
                continue
            rest = chain([line], _rest(line, lines, reading.split))
            if reading.split == "line":
                yield Document(offset, decoded(_without_line_end(rest)))
            else:
                yield Document(offset, decoded(rest))
            for _ in rest:  # the rest of a document that was rejected half-way
                pass


def _fragments(stream: BinaryIO) -> Iterator[bytes]:
    with named_errors():
        while block := stream.read(_BLOCK):
            yield block


def _lines(stream: BinaryIO, span: Span) -> Iterator[tuple[int, bytes]]:
    """Lines that begin in the span, each with its offset; one longer than a block in blocks."""
    offset = _first_line(stream, span)
    begins = True
    while span.end is None or offset < span.end or not begins:
        with named_errors():
            line = stream.readline(_BLOCK)
        if not line:
            return
        yield offset, line
        offset += len(line)
        begins = line.endswith(b"\n")


def _rest(first: bytes, lines: Iterator[tuple[int, bytes]], split: str) -> Iterator[bytes]:
    """The fragments after `first` that belong to its document."""
    ended = first.endswith(b"\n")
    if split == "line" and ended:
        return
    for _, line in lines:
        if split == "paragraph" and ended and line.isspace():
            return
        yield line
        ended = line.endswith(b"\n")
        if split == "line" and ended:
            return


def _without_line_end(fragments: Iterator[bytes]) -> Iterator[bytes]:
    """A line without what ends it: the same line from Windows, or the last one, is the same."""
    for fragment in fragments:
        if fragment.endswith(b"\n"):
            yield fragment[:-1].removesuffix(b"\r")
        else:
            yield fragment


def _first_line(stream: BinaryIO, span: Span) -> int:
    """Go to the first line that begins in the span; its offset, or the span's end if none does."""
    if span.start == 0:
        return 0
    stream.seek(span.start - 1)
    offset = span.start - 1
    while span.end is None or offset < span.end:
        line = stream.readline(_BLOCK)
        offset += len(line)
        if not line or line.endswith(b"\n"):
            break
    return offset


def _records(span: Span, reading: ReadingConfig) -> Iterator[Document | Reject | Filtered]:
    for offset, row in _rows(span, reading):
        if isinstance(row, Rejected):
            yield Reject(offset, str(row))
        elif not _passes(row, reading.where):
            yield Filtered(offset)
        else:
            name = None
            if reading.id_field is not None:
                name = _spelled(_field(row, reading.id_field))
            try:
                yield Document(offset, cut(_text_of(row, reading.text_field)), name)
            except Rejected as rejected:
                yield Reject(offset, str(rejected), name)


def _rows(span: Span, reading: ReadingConfig) -> Iterator[records.Row]:
    if span.file.kind in (".parquet", ".arrow"):
        with opened(span.file):  # says what is wrong with it in the words of all files
            pass
        read = records.parquet_rows if span.file.kind == ".parquet" else records.arrow_rows
        yield from read(span.file, _columns(reading))
        return
    one_value_a_line = span.file.kind == ".jsonl" or _is_json_lines(span.file)
    with opened(span.file) as stream:
        if not one_value_a_line:
            yield from records.json_values(stream)
        else:
            yield from records.json_lines(stream, _first_line(stream, span), span.end)


def _is_json_lines(file: InputFile) -> bool:
    """Whether a file called .json holds an object on each line, as C4 does.

    One of its first lines may be damaged, so the first two are looked at.
    """
    with opened(file) as stream:
        return records.begins_with_lines(stream)


def _columns(reading: ReadingConfig) -> list[str]:
    """The columns of a table that hold the fields that are read."""
    fields = [reading.text_field, *reading.where]
    if reading.id_field:
        fields.append(reading.id_field)
    return sorted({field.partition(".")[0] for field in fields if field})


def _passes(row: dict[str, Any], where: Mapping[str, str]) -> bool:
    """Whether the fields named in `where` have the values asked for."""
    return all(_spelled(_field(row, key)) == value for key, value in where.items())


def _field(row: dict[str, Any], path: str) -> Any:
    """The value of `path`, a field or a.b for b in a; None where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _spelled(value: Any) -> str:
    """A value as YAML spells it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _text_of(row: dict[str, Any], field: str) -> str:
    text = _field(row, field)
    if not isinstance(text, str):
        raise Rejected(f"no text in field {field!r}")
    if "\0" in text:
        raise Rejected("holds NUL")
    return text
