"""The words of a search typed again: which keys mean another training, and which come too late."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from hpc_llm.config.building import changes, to_dict
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.search_space import ASKED
from hpc_llm.runs.identity import identity
from hpc_llm.runs.layout import RootLayout
from hpc_llm.submission.search_file import Search

_MOST_KEYS = 4  # named in a line

Pair = tuple[RunConfig, RunConfig]  # a trial as it was, and as it would be now


def taken_up(earlier: Search, typed: Search) -> Search:
    """The search as it began, with the `search.*` that is typed now.

    InputError where the words mean another search; what is without effect is printed.
    """
    path = RootLayout(typed.root).search(typed.sweep)
    what = f"run.name={typed.sweep}: {path} is a search of another"
    if earlier.space.dimensions != typed.space.dimensions:
        raise InputError(f"{what} space; choose another run.name, or remove it")
    pairs = [(earlier.config(chosen, 0), typed.config(chosen, 0)) for chosen in typed.corners()]
    changed = other_training(pairs)
    if changed:
        raise InputError(
            f"{what} training ({_some(changed)}); choose another run.name, or remove it"
        )
    late = ignored_changes(pairs)
    if late:
        print(f"{typed.sweep}: goes on as it began; without effect: {_some(late)}", file=sys.stderr)
    space = earlier.space.asked_as(typed.space)
    return dataclasses.replace(earlier, space=space, words=typed.words, cancelled=[])


def other_training(pairs: Sequence[Pair]) -> list[str]:
    """`key=before, now value` of what decides what is learned, over all pairs."""
    lines: dict[str, None] = {}
    for then, now in pairs:
        lines.update(dict.fromkeys(changes(identity(then), identity(now))))
    return list(lines)


def ignored_changes(pairs: Sequence[Pair]) -> list[str]:
    """The same of every other key, but for those that count each time they are typed."""
    lines: dict[str, None] = {}
    for then, now in pairs:
        for line in changes(to_dict(then), to_dict(now)):
            key = line.partition("=")[0]
            if key.partition(".")[0] not in ASKED:
                lines[line] = None
    return list(lines)


def _some(changed: Sequence[str]) -> str:
    shown = "; ".join(changed[:_MOST_KEYS])
    return f"{shown}; …" if len(changed) > _MOST_KEYS else shown
