"""A sweep as columns of words, and the configurations of all their combinations.

Hydra needs 40 to 140 ms a composition. So it composes once for every choice of presets, and what
only sets a value is set afterwards, in what it composed and before interpolations are resolved: the
order Hydra has, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_llm.config import building, hydra_seam, overrides
from hpc_llm.config.errors import InputError
from hpc_llm.config.hydra_seam import Composed, Override
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import Words, force, groups_of, search_path

# Keys whose value may be one of Slurm's lists.
_SLURM_LISTS = tuple(
    f"cluster.{key}"
    for key in ("partition", "account", "qos", "constraint", "exclude", "reservation")
)


@dataclass(frozen=True)
class Choice:
    """One run of a sweep, and key → value of what the sweep varies, in the order given."""

    config: RunConfig
    swept: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One word of the command line, and all the words that a sweep makes of it."""

    override: Override
    words: list[str]

    @property
    def key(self) -> str:
        return self.override.key

    @property
    def is_swept(self) -> bool:
        return len(self.words) > 1


def checked_columns(words: Words, *, search: bool = False) -> list[Column]:
    """The columns of all words; InputError lists every unknown key, group and preset.

    Then the rest of the command line is composed too, so that its mistakes are in the same list.
    search: intervals are allowed, and left out.
    """
    checked = overrides.check(words, search=search)
    if not checked.problems:
        return _columns(checked.overrides, words)
    problems = [*checked.problems]
    try:
        compose_columns(_columns(checked.overrides, words), words)
    except InputError as error:
        problems += error.problems
    raise InputError(problems)


def _columns(sound: Sequence[Override], words: Words) -> list[Column]:
    columns: dict[str, Column] = {}
    for position, override in enumerate(sound):
        if override.interval is not None:
            continue
        # As Hydra's sweeper: of a word given twice the last one counts, in the place of the first.
        name = override.element if words.multirun else str(position)
        columns[name] = Column(override, _words_of(override, words))
    return list(columns.values())


def _words_of(override: Override, words: Words) -> list[str]:
    if not override.is_sweep:
        return [override.text]
    if not words.multirun:
        raise InputError(f"{override.text}: several values are a sweep; {_remedy(override, words)}")
    return [f"{override.element}={value}" for value in override.sweep_values()]


def _remedy(override: Override, words: Words) -> str:
    """What to type instead, where the comma may be part of one value: Slurm takes lists."""
    if override.key not in _SLURM_LISTS:
        return words.remedy
    value = ",".join(override.sweep_values())
    return f"quote a list of Slurm's, \"{override.key}='{value}'\"; for a sweep {words.remedy}"


def compose_columns(columns: Sequence[Column], words: Words) -> list[Choice]:
    """Every combination, the last column fastest; InputError with the mistakes of all."""
    composer = _Composer(columns, words)
    choices = []
    problems = dict[str, None]()  # an ordered set
    for chosen in itertools.product(*(column.words for column in columns)):
        try:
            choices.append(composer.choice(chosen))
        except InputError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise InputError(problems)
    return choices


class _Composer:
    """Composes combinations of words, each choice of presets once."""

    def __init__(self, columns: Sequence[Column], words: Words) -> None:
        self._columns = columns
        self._words = words
        self._late = [late_values(column, columns, words) for column in columns]
        self._composed: dict[tuple[str, ...], Composed] = {}

    def choice(self, chosen: Sequence[str]) -> Choice:
        """The run with one word of every column."""
        early = tuple(self._early(chosen))
        if early not in self._composed:
            self._composed[early] = compose_words(early, self._words)
        composed = self._composed[early]
        swept = {}
        for word, column, values in zip(chosen, self._columns, self._late, strict=True):
            if word in values:
                composed.set(column.key, values[word])
            if column.is_swept:
                swept[column.key] = word.partition("=")[2]
        return Choice(resolve(composed), swept)

    def _early(self, chosen: Sequence[str]) -> Iterator[str]:
        """The words that Hydra composes."""
        for word, values in zip(chosen, self._late, strict=True):
            if word not in values:
                yield word


def late_values(column: Column, columns: Sequence[Column], words: Words) -> dict[str, Any]:
    """Word → value of a swept column of scalars whose key no other word touches.

    Empty for all other columns, which are Hydra's.
    """
    groups = groups_of(words.config_dirs)
    override = column.override
    is_plain = override.package is None and not override.is_delete
    if not column.is_swept or not is_plain or column.key in groups:
        return {}
    if column.key.partition(".")[0] == "hydra":
        return {}
    for other in columns:
        if other is not column and other.key not in groups and overlap(column.key, other.key):
            return {}
    values = {}
    for word in column.words:
        try:
            value = hydra_seam.parse(force(word), groups).value
        except InputError:
            return {}
        if isinstance(value, (dict, list)):
            return {}
        values[word] = value
    return values


def overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is a section of the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def compose_words(chosen: Sequence[str], words: Words) -> Composed:
    """What Hydra makes of words of which each has one value."""
    groups = groups_of(words.config_dirs)
    lines = []
    for word in chosen:
        name = word.lstrip("+~").partition("=")[0].partition("@")[0]
        lines.append(word if name in groups else force(word))
    return hydra_seam.compose([*lines, search_path(words)], words.config_dirs)


def resolve(composed: Composed) -> RunConfig:
    """The configuration with interpolations resolved and types checked."""
    plain = composed.resolved()
    plain.pop("experiment", None)
    plain.setdefault("trackers", {})
    return building.build(RunConfig, plain)
