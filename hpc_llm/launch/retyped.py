"""The words of a search typed again: in which keys they mean another training, and which of them come too late."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_llm.config.building import changes, to_dict
from hpc_llm.config.compose import ASKED
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs.freeze import identity


def other_training(pairs: Iterable[tuple[RunConfig, RunConfig]]) -> list[str]:
    """`key=before, now value` of what decides what is learned, over all pairs of a trial then and now."""
    return list(dict.fromkeys(line for then, now in pairs for line in changes(identity(then), identity(now))))


def without_effect(pairs: Iterable[tuple[RunConfig, RunConfig]]) -> list[str]:
    """The same of every other key, but for those that each typing of the words says anew."""
    lines = (line for then, now in pairs for line in changes(to_dict(then), to_dict(now)))
    return [line for line in dict.fromkeys(lines) if line.partition("=")[0].partition(".")[0] not in ASKED]
