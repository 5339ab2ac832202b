"""What a search may choose for one key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dimension:
    """A key and its `choices` (presets if it is a group), or else an interval of numbers, both ends included."""

    key: str
    is_group: bool
    choices: list[Any]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # whole numbers only
