"""Tables as squeue and sinfo print them in columns of fixed width."""

from __future__ import annotations


def columns(widths: dict[str, int], *rows: tuple[str, ...]) -> str:
    return "\n".join(
        "".join(c.ljust(w) for c, w in zip(row, widths.values(), strict=True)) for row in rows
    )
