"""Errors that the user can fix: shown one line each, without a traceback.

InputError ends a command with status 2, NoRoom with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """One or several mistakes in the user's input, each a complete one-line sentence."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class NoRoom(Exception):
    """Space or quota ran out: a sentence with the path and what to do. No mistake in the input."""


def nearest(word: str, allowed: Iterable[str], most: int = 12) -> str:
    """The allowed words as a phrase, those spelt most similarly to `word` first."""
    words = sorted(set(allowed))
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    ordered = close + [other for other in words if other not in close]
    shown = ", ".join(ordered[:most])
    if len(ordered) > most:
        shown += f", … ({len(ordered)} in all)"
    return shown
