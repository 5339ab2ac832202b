"""A document while it is read: its place, and its text in pieces.

So a huge document is never in memory whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARS = 1 << 16


class Rejected(Exception):
    """A document that cannot be used, and why. May be raised while its pieces are being read."""


@dataclass(frozen=True)
class Document:
    """One document. Its pieces are read once, before the next document is asked for."""

    offset: int  # bytes into the (decompressed) file, or rows if it has rows
    pieces: Iterable[str]
    id: str | None = None


@dataclass(frozen=True)
class Reject:
    """What cannot be used: a single document or, in a broken file, everything that follows."""

    offset: int
    reason: str
    id: str | None = None


@dataclass(frozen=True)
class Filtered:
    """A document that the source's filters leave out."""

    offset: int


def cut(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """`text` in pieces of at most `size` characters.

    They are cut at `cut_point`, so the places depend on the text alone.
    """
    start = 0
    while len(text) - start > size:
        end = cut_point(text, start, start + size)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def cut_point(text: str, start: int, limit: int) -> int:
    """Where to cut `text` in characters [start, limit).

    Before the last single space between words, where most tokenizers split anyway. Without one,
    after the last line that ends there, where a token may be cut in two, otherwise at `limit`.
    """
    position = limit
    while (position := text.rfind(" ", start + 1, position)) > 0:
        if not text[position - 1].isspace() and not text[position + 1].isspace():
            return position
    return text.rfind("\n", start, limit) + 1 or limit


def decoded(fragments: Iterable[bytes]) -> Iterator[str]:
    """The UTF-8 text of `fragments` in pieces, without a byte-order mark at its beginning.

    Rejected at the first invalid byte, or NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = ""
    num_bytes = 0
    for fragment in fragments:
        text += _decode(decoder, fragment, num_bytes)
        if num_bytes == 0:
            text = text.removeprefix("\ufeff")
        num_bytes += len(fragment)
        if len(text) > PIECE_CHARS:
            *ready, text = cut(text)
            yield from ready
    _decode(decoder, b"", num_bytes, final=True)
    if text:
        yield text


def _decode(
    decoder: codecs.IncrementalDecoder, fragment: bytes, before: int, final: bool = False
) -> str:
    if b"\0" in fragment:
        raise Rejected("holds NUL")
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(fragment, final)
    except UnicodeDecodeError as error:
        raise Rejected(f"invalid UTF-8 at byte {before - pending + error.start}") from None
