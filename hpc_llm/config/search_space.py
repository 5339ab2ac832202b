"""What a search may choose for one key."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from hpc_llm.config.compose import (
    _checked,
    _Column,
    _columns,
    _compose_one,
    _hydra,
    _late_values,
    _resolve,
    _with_named_sweep,
)
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import Words, groups_of


@dataclass(frozen=True)
class Dimension:
    """A key and its `choices` (presets if it is a group), or else an interval of numbers, both ends
    included.
    """

    key: str
    is_group: bool
    choices: list[Any]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # whole numbers only


ASKED = (
    "search",
    "dry_run",
    "test_only",
    "local",
    "json",
)  # how much of a search is wanted, and in which manner


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
        presets = [f"{one.key}={chosen[one.key]}" for one in self.dimensions if one.is_group]
        composed = OmegaConf.create(self.templates[json.dumps(presets)])
        assert isinstance(composed, DictConfig)
        for one in self.dimensions:
            if not one.is_group:
                OmegaConf.update(composed, one.key, chosen[one.key], merge=True, force_add=True)
        return _resolve(composed)

    def asked_as(self, typed: Space) -> Space:
        """This space, with what is ASKED of `typed`, which has the same dimensions."""
        templates = {}
        for chosen, text in self.templates.items():
            composed = OmegaConf.create(text)
            other = OmegaConf.create(typed.templates[chosen])
            for key in ASKED:
                OmegaConf.update(composed, key, OmegaConf.select(other, key))
            templates[chosen] = OmegaConf.to_yaml(composed)
        return Space(self.dimensions, templates)


def compose_space(argv: Sequence[str]) -> Space:
    """The space that the words of a search describe: Hydra's sweep syntax, with interval(a, b),
    int(…), tag(log, …).
    """
    words = Words.parse(argv)
    if not words.multirun:
        raise InputError("search.trials: a search is a sweep; add -m")
    with _hydra(words):
        words = _with_named_sweep(words)
        groups = groups_of(words.config_dirs)
        overrides = _checked(words, search=True)
        intervals = [one for one in overrides if isinstance(one.value(), IntervalSweep)]
        columns = _columns([one for one in overrides if one not in intervals], words)
        swept = [column for column in columns if column.swept]
        fixed = [column.words[0] for column in columns if not column.swept]
        dimensions = [_dimension(one, groups, _late_values(one, columns, words)) for one in swept]
        dimensions += [_interval(one, columns, groups) for one in intervals]
        presets = [
            [f"{one.key}={name}" for name in one.choices] for one in dimensions if one.is_group
        ]
        templates = {
            json.dumps(chosen): OmegaConf.to_yaml(_compose_one([*fixed, *chosen], words))
            for chosen in itertools.product(*presets)
        }
    if not dimensions:
        raise InputError(
            "search.trials: nothing to choose; give a key several values, or interval(low,high), "
            "with -m"
        )
    return Space(dimensions, templates)


def _dimension(column: _Column, groups: Collection[str], values: Mapping[str, Any]) -> Dimension:
    key = column.override.key_or_group
    if key in groups:
        return Dimension(key, True, [word.partition("=")[2] for word in column.words])
    if not values:
        raise InputError(
            f"{column.override.input_line}: a search chooses numbers and words of keys that "
            "nothing else sets"
        )
    return Dimension(key, False, list(values.values()))


def _interval(override: Override, columns: list[_Column], groups: Collection[str]) -> Dimension:
    key = override.key_or_group
    value = override.value()
    assert isinstance(value, IntervalSweep)
    others = {column.override.key_or_group for column in columns} - set(groups)
    if key in groups or any(
        f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in others
    ):
        raise InputError(
            f"{override.input_line}: a search chooses numbers and words of keys that nothing "
            "else sets"
        )
    low = value.start
    high = value.end
    assert low is not None
    assert high is not None
    if not low < high or ("log" in value.tags and low <= 0):
        raise InputError(
            f"{override.input_line}: interval(low,high) with low below high is expected, above 0 "
            "with tag(log)"
        )
    return Dimension(key, False, [], low, high, log="log" in value.tags, whole=isinstance(low, int))
