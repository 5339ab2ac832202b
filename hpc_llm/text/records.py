"""Rows of JSON Lines, JSON, Parquet and Arrow files, one at a time in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hpc_llm.text.documents import Rejected
from hpc_llm.text.sources import InputFile

MAX_RECORD_BYTES = 1 << 26  # of JSON, which is parsed whole; a longer record is rejected
_BLOCK = 1 << 20
_BATCH_ROWS = 256

Row = tuple[int, "dict[str, Any] | Rejected"]  # offset, fields


def json_lines(stream: BinaryIO, start: int, end: int | None) -> Iterator[Row]:
    """Lines of JSON that begin in bytes [start, end) of `stream`.

    `stream` is at `start`, the beginning of a line. Blank lines are skipped, and a byte-order mark
    at the beginning of a line: where files were joined it is in the middle.
    """
    offset = start
    while end is None or offset < end:
        line = stream.readline(MAX_RECORD_BYTES)
        if not line:
            return
        size = len(line)
        if size == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            size += _skip_line(stream)
            yield offset, Rejected(f"record of {size} bytes; at most {MAX_RECORD_BYTES} are read")
        else:
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield offset, _parsed(line)
        offset += size


def begins_with_lines(stream: BinaryIO) -> bool:
    """Whether one of the first two lines, at the beginning of `stream`, is an object by itself.

    And none of them holds several values, or one that goes on in the next line.
    """
    whole = False
    for _ in range(2):
        line = stream.readline(MAX_RECORD_BYTES).removeprefix(codecs.BOM_UTF8).strip()
        try:
            text = line.decode()
            _, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError as error:
            if text and error.pos >= len(text):
                return False  # it goes on
        except (ValueError, RecursionError):
            continue  # damaged
        else:
            if end < len(text):
                return False
            whole = whole or text.startswith("{")
    return whole


def _skip_line(stream: BinaryIO) -> int:
    """Pass over the rest of a line; its bytes."""
    size = 0
    while block := stream.readline(_BLOCK):
        size += len(block)
        if block.endswith(b"\n"):
            break
    return size


def json_values(stream: BinaryIO) -> Iterator[Row]:
    """Objects in an array, or one after another; the offset is the row. An error ends the file."""
    values = _Values(stream)
    array = values.peek() == "["
    if array:
        values.skip(1)
    row = 0
    while (character := values.peek()) and not (array and character == "]"):
        if array and row:
            if character != ",":
                raise Rejected(f"no JSON: ',' or ']' is expected after row {row - 1}")
            values.skip(1)
            values.peek()
        yield row, _fields(values.next())
        row += 1
    if array and not values.peek():
        raise Rejected("truncated")


def parquet_rows(file: InputFile, columns: list[str]) -> Iterator[Row]:
    """Rows of a Parquet file; only those of `columns` that it has are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path) as opened:
            present = [name for name in columns if name in opened.schema_arrow.names]
            batches = opened.iter_batches(_BATCH_ROWS, columns=present)
            yield from _rows(batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise Rejected(f"damaged: {_first_line(error)}") from None


def arrow_rows(file: InputFile, columns: list[str]) -> Iterator[Row]:
    """Rows of an Arrow file in the stream format (datasets.save_to_disk) or the file format."""
    import pyarrow

    try:
        with Path(file.path).open("rb") as opened:
            magic = opened.read(6)
        with pyarrow.memory_map(file.path) as mapped:
            if magic == b"ARROW1":
                reader = pyarrow.ipc.open_file(mapped)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(mapped))
            yield from _rows(_slices(batches, columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise Rejected(f"damaged: {_first_line(error)}") from None


def _slices(batches: Any, columns: list[str]) -> Iterator[Any]:
    """The columns that there are, a few rows at a time."""
    for batch in batches:
        present = batch.select([name for name in columns if name in batch.schema.names])
        for first in range(0, batch.num_rows, _BATCH_ROWS):
            yield present.slice(first, _BATCH_ROWS)


def _rows(batches: Any) -> Iterator[Row]:
    row = 0
    for batch in batches:
        for fields in _fields_of(batch):
            yield row, fields
            row += 1


def _fields_of(batch: Any) -> list[dict[str, Any] | Rejected]:
    """The rows of a batch; Rejected in place of one that Python cannot hold: invalid UTF-8."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            fields: list[dict[str, Any] | Rejected] = []
            for row in range(batch.num_rows):
                fields += _fields_of(batch.slice(row, 1))
            return fields
        if isinstance(error, UnicodeDecodeError):
            return [Rejected(f"invalid UTF-8 at byte {error.start} of a field")]
        return [Rejected(f"a field cannot be read: {_first_line(error)}")]


def _parsed(line: bytes) -> dict[str, Any] | Rejected:
    try:
        return _fields(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return Rejected(f"invalid UTF-8 at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Rejected(f"no JSON: {error}")


def _fields(value: Any) -> dict[str, Any] | Rejected:
    if not isinstance(value, dict):
        return Rejected(f"a JSON object is expected, not {type(value).__name__}")
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


class _Values:
    """JSON values from a stream, with at most one value and one block in memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._more(_BLOCK):
                return ""

    def skip(self, count: int) -> None:
        self._position += count

    def next(self) -> Any:
        """The value that begins here.

        Rejected if there is none, or it does not end within MAX_RECORD_BYTES.
        """
        parse = json.JSONDecoder().raw_decode
        while True:
            try:
                value, end = parse(self._text, self._position)
            except (ValueError, RecursionError) as error:
                held = len(self._text) - self._position
                if held > MAX_RECORD_BYTES:
                    raise Rejected(
                        f"record of more than {MAX_RECORD_BYTES} bytes, or no JSON: {error}"
                    ) from None
                if not self._more(max(_BLOCK, held)):
                    raise Rejected(f"no JSON: {error}") from None
                continue
            if end < len(self._text) or not self._more(_BLOCK):  # 12 may go on as 123
                self._position = end
                return value

    def _more(self, size: int) -> bool:
        """Read on; False at the end of the stream."""
        if self._ended:
            return False
        block = self._stream.read(size)
        try:
            new = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            raise Rejected("invalid UTF-8") from None
        self._ended = not block
        self._text = self._text[self._position :] + new
        self._position = 0
        return not self._ended
