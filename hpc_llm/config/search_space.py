"""What a search may choose for each key, and the rest of the configuration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config import hydra_seam, overrides
from hpc_llm.config.columns import (
    Column,
    checked_columns,
    compose_words,
    late_values,
    overlap,
    resolve,
)
from hpc_llm.config.errors import InputError
from hpc_llm.config.hydra_seam import Composed, Override
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import Words, groups_of

# How much of a search is wanted, and in which manner.
ASKED = ("search", "dry_run", "test_only", "local", "json")


@dataclass(frozen=True)
class Dimension:
    """A key and its `choices` (presets if it is a group), or else an interval of numbers.

    Both ends of an interval are included.
    """

    key: str
    is_group: bool
    choices: list[Any]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # whole numbers only


@dataclass(frozen=True)
class Space:
    """What a search may choose, and the rest.

    templates: composed, with interpolations yet to be resolved, for each combination of the presets
    to choose among (`model=a`, as JSON): all that a trial needs, whatever becomes of conf/
    meanwhile.
    """

    dimensions: list[Dimension]
    templates: dict[str, str]

    def config(self, chosen: Mapping[str, Any]) -> RunConfig:
        """The configuration with key → value of every dimension; InputError as `compose`."""
        presets = []
        values = {}
        for dimension in self.dimensions:
            value = chosen[dimension.key]
            if dimension.is_group:
                presets.append(f"{dimension.key}={value}")
            else:
                values[dimension.key] = value
        composed = Composed.from_yaml(self.templates[json.dumps(presets)])
        for key, value in values.items():
            composed.set(key, value)
        return resolve(composed)

    def asked_as(self, typed: Space) -> Space:
        """This space, with what is ASKED of `typed`, which has the same dimensions."""
        templates = {}
        for presets, text in self.templates.items():
            composed = Composed.from_yaml(text)
            other = Composed.from_yaml(typed.templates[presets])
            for key in ASKED:
                composed.replace(key, other.select(key))
            templates[presets] = composed.to_yaml()
        return Space(self.dimensions, templates)


def compose_space(argv: Sequence[str]) -> Space:
    """The space that the words of a search describe.

    In Hydra's sweep syntax, with interval(a, b), int(…), tag(log, …).
    """
    words = Words.parse(argv)
    if not words.multirun:
        raise InputError("search.trials: a search is a sweep; add -m")
    with hydra_seam.opened(words.config_dirs[0]):
        words = overrides.with_named_sweep(words)
        columns = checked_columns(words, search=True)
        dimensions = _dimensions(columns, words)
        templates = _templates(columns, dimensions, words)
    if not dimensions:
        raise InputError(
            "search.trials: nothing to choose; give a key several values, or interval(low,high), "
            "with -m"
        )
    return Space(dimensions, templates)


def _templates(
    columns: Sequence[Column], dimensions: Sequence[Dimension], words: Words
) -> dict[str, str]:
    """What Hydra composes for every combination of presets to choose among."""
    fixed = [column.words[0] for column in columns if not column.is_swept]
    presets = []
    for dimension in dimensions:
        if dimension.is_group:
            presets.append([f"{dimension.key}={name}" for name in dimension.choices])
    templates = {}
    for chosen in itertools.product(*presets):
        templates[json.dumps(chosen)] = compose_words([*fixed, *chosen], words).to_yaml()
    return templates


def _dimensions(columns: Sequence[Column], words: Words) -> list[Dimension]:
    """Swept columns first, then intervals."""
    groups = groups_of(words.config_dirs)
    dimensions = []
    for column in columns:
        if column.is_swept:
            values = late_values(column, columns, words)
            dimensions.append(_dimension(column, groups, values))
    for override in overrides.check(words, search=True).overrides:
        if override.interval is not None:
            dimensions.append(_interval(override, columns, groups))
    return dimensions


def _dimension(column: Column, groups: Collection[str], values: Mapping[str, Any]) -> Dimension:
    if column.key in groups:
        names = [word.partition("=")[2] for word in column.words]
        return Dimension(column.key, True, names)
    if not values:
        raise _touched(column.override)
    return Dimension(column.key, False, list(values.values()))


def _interval(override: Override, columns: Sequence[Column], groups: Collection[str]) -> Dimension:
    key = override.key
    interval = override.interval
    assert interval is not None
    others = {column.key for column in columns} - set(groups)
    if key in groups or any(overlap(key, other) for other in others):
        raise _touched(override)
    if not interval.low < interval.high or (interval.log and interval.low <= 0):
        raise InputError(
            f"{override.text}: interval(low,high) with low below high is expected, above 0 "
            "with tag(log)"
        )
    return Dimension(
        key, False, [], interval.low, interval.high, log=interval.log, whole=interval.whole
    )


def _touched(override: Override) -> InputError:
    return InputError(
        f"{override.text}: a search chooses numbers and words of keys that nothing else sets"
    )
