"""Rows of standings for a person: columns, durations, alignment. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def seconds(value: float | None) -> str:
    """45s, 12m, 3h05m, 2d04h: two units at most."""
    if value is None:
        return "-"
    whole = round(abs(value))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    text = f"{whole}s" if whole < 60 else f"{minutes}m"
    if days or hours:
        text = f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m"
    return f"-{text}" if value < 0 and whole else text


def causes(row: Mapping[str, Any]) -> str:
    """How often it restarted, and why: `3 (2 crash, 1 preempted)`."""
    found = ", ".join(f"{count} {cause}" for cause, count in row["restarts_by_cause"].items())
    return f"{row['restarts']} ({found})" if found else str(row["restarts"])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def plain(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


Column = tuple[str, Callable[[dict[str, Any]], str]]

# As in squeue, the job id comes first.
RUNS: list[Column] = [
    ("JOB", lambda row: plain(row["job_id"])),
    ("RUN", lambda row: row["run"]),
    ("STATE", lambda row: row["state"]),
    ("CAUSE", lambda row: plain(row["cause"])),
    ("STEP", lambda row: f"{row['step']}/{row['steps']}"),
    ("LOSS", lambda row: plain(row["loss"])),
    ("TOKENS/S", lambda row: "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"),
    ("MFU", lambda row: percent(row["mfu"])),
    ("ETA", lambda row: seconds(row["eta_s"])),
    ("LIMIT", lambda row: seconds(row["limit_s"])),
    ("SAVED", lambda row: "-" if row["checkpoint_age_s"] is None else f"{seconds(row['checkpoint_age_s'])} ago"),
    ("RESTARTS", causes),
    ("ETTR", lambda row: percent(row["ettr"])),
    ("NODES", lambda row: row["nodes"] or "-"),
]


def of(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """Columns as wide as they need to be; the last is not padded."""
    return aligned([[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
