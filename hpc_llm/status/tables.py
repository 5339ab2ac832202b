"""Tables for people: columns, durations, alignment. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Column = tuple[str, Callable[[dict[str, Any]], str]]  # heading, and a row's cell


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A line of headings and one per row."""
    lines = [[heading for heading, _ in columns]]
    for row in rows:
        lines.append([cell(row) for _, cell in columns])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the last is not padded."""
    widths = [0] * len(lines[0])
    for line in lines:
        for place, cell in enumerate(line):
            widths[place] = max(widths[place], len(cell))
    text = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def seconds(value: float | None) -> str:
    """45s, 12m, 3h05m, 2d04h: two units at most."""
    if value is None:
        return "-"
    whole = round(abs(value))
    days = whole // 86400
    hours = whole // 3600 % 24
    minutes = whole // 60 % 60
    if days:
        text = f"{days}d{hours:02d}h"
    elif hours:
        text = f"{hours}h{minutes:02d}m"
    elif minutes:
        text = f"{minutes}m"
    else:
        text = f"{whole}s"
    if value < 0 and whole:
        return f"-{text}"
    return text


def percent(value: float | None) -> str:
    """12.3%, or a dash."""
    return number(value, ".1%")


def number(value: float | None, spelling: str) -> str:
    """The number in this format, or a dash."""
    if value is None:
        return "-"
    return format(value, spelling)


def plain(value: Any) -> str:
    """The value, a fraction to four places, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)
