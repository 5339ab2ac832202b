"""Sizes, times and counts as people read them."""

from __future__ import annotations

from hpc_llm.planning.hardware import GIB

_SCALES = ((1e12, " T"), (1e9, " B"), (1e6, " M"))


def gib(size: int) -> str:
    """Bytes in GiB; with three digits where there is little."""
    if size >= GIB / 10:
        return f"{size / GIB:,.1f} GiB"
    return f"{size / GIB:.3f} GiB"


def duration(hours: float) -> str:
    """Days, hours or minutes."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:,.1f} min"


def count(number: float) -> str:
    """Four digits and a unit, or all digits of a number below a million."""
    for scale, unit in _SCALES:
        if number >= scale:
            return f"{number / scale:,.4g}{unit}"
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """The noun for this number of things."""
    return noun if number == 1 else f"{noun}s"


def origin(given: object) -> str:
    """Whether a value was chosen by the plan or given by the user."""
    return "(auto)" if given == "auto" else "(given)"
