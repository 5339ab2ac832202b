"""Durations as users write them: `4800steps`, `1e9tok`, `2ep`, `20min`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hpc_llm.config.errors import InputError

UNITS = {
    "steps": "steps",
    "step": "steps",
    "tok": "tok",
    "ep": "ep",
    "s": "s",
    "min": "min",
    "h": "h",
}
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_PATTERN = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+]?\d+)?)\s*([a-z]+)")


@dataclass(frozen=True)
class Duration:
    """An amount of training (steps, tokens, epochs of the data) or of wall time (s, min, h)."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    @property
    def is_time(self) -> bool:
        return self.unit in SECONDS

    def seconds(self) -> float:
        """Wall time in seconds; only for time units."""
        return self.amount * SECONDS[self.unit]

    def steps(self, tokens_per_step: int, tokens_per_epoch: int | None = None) -> int:
        """Optimizer steps that cover this much training, rounded up.

        `tokens_per_epoch` is needed only for `ep`; ValueError without it or for a time unit.
        """
        if self.unit == "steps":
            return math.ceil(self.amount)
        if self.unit == "tok":
            return math.ceil(self.amount / tokens_per_step)
        if self.unit == "ep" and tokens_per_epoch is not None:
            return math.ceil(self.amount * tokens_per_epoch / tokens_per_step)
        raise ValueError(f"{self} is not a number of steps")


def parse(text: str, allowed: tuple[str, ...], none: bool = False) -> Duration:
    """`text` as a Duration in one of the `allowed` units; InputError says what is allowed.

    none: whether it may be 0.
    """
    match = _PATTERN.fullmatch(str(text).strip())
    unit = UNITS.get(match[2]) if match else None
    if match is None or unit not in allowed:
        examples = {
            "steps": "4800steps",
            "tok": "1e9tok",
            "ep": "2ep",
            "s": "90s",
            "min": "20min",
            "h": "2h",
        }
        raise InputError("a number and its unit: " + ", ".join(examples[name] for name in allowed))
    duration = Duration(float(match[1]), unit)
    if (duration.amount == 0 and not none) or not math.isfinite(duration.amount):
        raise InputError("a finite amount is expected" if none else "an amount above 0 is expected")
    return duration
