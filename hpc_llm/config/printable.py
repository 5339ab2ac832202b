"""Text of others on a terminal: what would steer it is shown, not sent. Standard library only.

Names of runs, lines of ledgers and logs may be a colleague's, or what a library printed. A terminal
obeys control characters in them: some move the cursor over other lines, some write the clipboard.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# C0 but for tabs and line ends, DEL, C1, other line ends, what turns the direction of reading, and
# halves of characters, which cannot be written at all.
_STEERING = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def printable(text: str) -> str:
    """`text` with control characters as their escapes, `\\x1b`; tabs and line ends stay."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PrintableStream(io.TextIOBase):
    """Writes to `steered` what is printable of a text; all else is as in `steered`."""

    def __init__(self, steered: TextIO) -> None:
        self.steered = steered

    def write(self, text: str) -> int:
        self.steered.write(printable(text))
        return len(text)

    def flush(self) -> None:
        self.steered.flush()

    def fileno(self) -> int:
        return self.steered.fileno()

    def isatty(self) -> bool:
        return self.steered.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.steered.encoding


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Within, all that is printed on stdout and stderr is printable."""
    out = PrintableStream(sys.stdout)
    errors = PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield


def steered(stream: TextIO) -> TextIO:
    """The stream behind a printable one, for what the program itself draws."""
    if isinstance(stream, PrintableStream):
        return stream.steered
    return stream
