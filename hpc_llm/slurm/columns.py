"""Tables of squeue and sinfo in columns of fixed width: no delimiter works in every release.

Pure functions of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# gpu:a100:8(S:0-1) and gpu:a100:3(IDX:0-2) in GRES
_GPUS = re.compile(r"gpu(?::[^:,=(\s]+)*[:=](\d+)")
_ALL_GPUS = re.compile(r"gres/gpu=(\d+)")  # in TRES

Widths = Mapping[str, int]  # characters by field


def format_option(widths: Widths) -> str:
    """The option that asks for these fields."""
    columns = [f"{name}:{width}" for name, width in widths.items()]
    return "--Format=" + ",".join(columns)


def rows(text: str, widths: Widths) -> Iterator[list[str]]:
    """The cells of each line whose first cell is not empty."""
    for line in text.splitlines():
        cells = []
        start = 0
        for width in widths.values():
            cells.append(line[start : start + width].strip())
            start += width
        if cells[0]:
            yield cells


def num_gpus(text: str) -> int:
    """GPUs in a list of TRES, which has their total, or of GRES, whose types add up."""
    total = _ALL_GPUS.search(text)
    if total is not None:
        return int(total[1])
    return sum(map(int, _GPUS.findall(text)))
