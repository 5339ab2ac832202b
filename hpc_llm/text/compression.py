"""Files, compressed or not, as streams of bytes.

A compressed file that ends too early is an error, not an end.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from hpc_llm.text.documents import Rejected
from hpc_llm.text.sources import InputFile

_BLOCK = 1 << 20
# Bytes that are unpacked at once: Zstandard packs 128 kB into 4 bytes at best, so 16 MB come out.
_MOST_PACKED = 512
# Bytes of zstd --long=31. A frame takes the window that it was packed with, 2 to 8 MB by default.
_MOST_WINDOW = 1 << 31


@contextmanager
def opened(file: InputFile) -> Iterator[BinaryIO]:
    """The decompressed bytes of `file`. Rejected if it cannot be opened."""
    try:
        if not stat.S_ISREG(Path(file.path).stat().st_mode):  # reading a pipe would wait for ever
            raise Rejected("not a regular file")
        raw = Path(file.path).open("rb", buffering=_BLOCK)  # noqa: SIM115 – closed below
    except FileNotFoundError:
        raise Rejected("vanished") from None
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from None
    with raw:
        yield _unpacked(raw, file.compression)


@contextmanager
def named_errors() -> Iterator[None]:
    """Turns errors while a file is read into Rejected."""
    try:
        yield
    except EOFError:
        raise Rejected("truncated") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise Rejected(f"damaged: {error}") from None
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror or error}") from None


def _unpacked(raw: BinaryIO, compression: str | None) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if compression == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(raw), _BLOCK)
    return raw


class _Zstandard(io.RawIOBase):
    """zstandard's own reader accepts a truncated file as complete."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._library = zstandard
        self._ready = bytearray()
        self._frame = self._next_frame()
        self._within = False  # a frame that has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while len(self._ready) < len(buffer) and self._unpack():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        del self._ready[:size]
        return size

    def _unpack(self) -> bool:
        """Decompress a little more; False at the end."""
        packed = self._raw.read(_MOST_PACKED)
        if not packed and self._within and not self._ready:
            raise EOFError
        at_end = not packed
        while packed:
            try:
                self._ready += self._frame.decompress(packed)
            except self._library.ZstdError as error:
                raise OSError(f"damaged: {error}") from None
            self._within = not self._frame.eof
            packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = self._next_frame()
        return not at_end

    def _next_frame(self) -> Any:
        return self._library.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()
