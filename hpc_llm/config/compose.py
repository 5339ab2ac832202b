"""Words of the command line → Hydra composition → RunConfig. The only file that imports Hydra.

Hydra composes untyped; types, unknown keys and missing values are checked against the schema, so
that the user sees every mistake at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc_llm.config import building, hydra_help
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import CONF, Words, force, groups_of, key_problem, plain_group

OmegaConf.register_new_resolver(
    "scale", lambda value, factor: float(value) * float(factor), replace=True
)


@dataclass(frozen=True)
class Choice:
    """One run of a sweep: its configuration, and key → value of what the sweep varies, in the order
    given.
    """

    config: RunConfig
    swept: dict[str, str] = field(default_factory=dict)


def compose(argv: Sequence[str]) -> RunConfig:
    """The one configuration that `argv` describes; InputError lists all that is wrong with it, -m
    among it.
    """
    if flags := [word for word in argv if word in ("-m", "--multirun")]:
        raise InputError(
            f"{flags[0]}: a sweep is for submit and plan; here leave it out, and give each key "
            "one value"
        )
    words = dataclasses.replace(
        Words.parse(argv), remedy="submit and plan can; here give each key one value"
    )
    return _composed(words)[0].config


def compose_all(argv: Sequence[str]) -> list[RunConfig]:
    """Every configuration of a sweep in Hydra's order, or the single one without `-m`."""
    return [choice.config for choice in compose_sweep(argv)]


def compose_sweep(argv: Sequence[str]) -> list[Choice]:
    """As `compose_all`, each with what the sweep chose for it; InputError lists the mistakes of all
    of them.
    """
    return _composed(Words.parse(argv))


def _composed(words: Words) -> list[Choice]:
    with _hydra(words):
        words = _with_named_sweep(words)
        return _compose_columns(_columns(_checked(words), words), words)


def _with_named_sweep(words: Words) -> Words:
    """The words with those that the chosen experiment sweeps (hydra.sweeper.params, as in Hydra)
    before the user's.
    """
    chosen = [
        word.partition("=")[2] for word in words.overrides if word.partition("=")[0] == "experiment"
    ]
    names = [
        name
        for name in chosen[-1:]
        for name in name.split(",")
        if name in groups_of(words.config_dirs)["experiment"]
    ]
    swept = {name: params for name in names if (params := _sweep_of(name, words))}
    if not swept:
        return words
    if len(names) > 1:
        raise InputError(
            f"experiment={chosen[-1]}: {next(iter(swept))} is a sweep of its own; submit it by "
            "itself"
        )
    if not words.multirun:
        raise InputError(f"experiment={names[0]}: it is a sweep; {words.remedy}")
    named = [f"{key}={values}" for key, values in swept[names[0]].items()]
    return dataclasses.replace(words, overrides=[*named, *words.overrides])


def _sweep_of(experiment: str, words: Words) -> dict[str, str]:
    """Key → values in Hydra's sweep syntax, in the order that they vary."""
    try:
        composed = hydra_compose(
            "config", [f"experiment={experiment}", _search_path(words)], return_hydra_config=True
        )
    except (HydraException, OmegaConfBaseException):
        return {}  # composing the whole says what is wrong
    return {
        str(key): str(values)
        for key, values in (composed.hydra.sweeper.get("params") or {}).items()
    }


def searches(argv: Sequence[str]) -> bool:
    """Whether `argv` describes a search: search.trials is in its words, or in a preset of its
    sweep.
    """
    words = Words.parse(argv)
    if (typed := _typed_trials(words)) is not None:
        return typed != "null"
    if not words.multirun:
        return False
    try:
        with _hydra(words):
            words = _with_named_sweep(words)
            groups = groups_of(words.config_dirs)
            presets = [word for word in words.overrides if word.partition("=")[0] in groups]
            columns = _columns(_checked(dataclasses.replace(words, overrides=presets)), words)
            composed = _compose_one([column.words[0] for column in columns], words)
    except InputError:
        return False  # composing the whole says what is wrong
    return _typed_trials(words) is not None or composed.search.trials is not None


def _typed_trials(words: Words) -> str | None:
    typed = [word.partition("=") for word in words.overrides]
    return next(
        (value for key, _, value in reversed(typed) if key.lstrip("+") == "search.trials"), None
    )


def sound_part(argv: Sequence[str], problems: Sequence[str]) -> list[RunConfig]:
    """What `argv` describes without the words that `problems` name, to look for further mistakes in
    the same go.

    Empty where a preset is wrong: what its values would have meant for the others, nobody knows.
    """
    blamed = {re.split("[=:]", problem, maxsplit=1)[0].lstrip("'") for problem in problems}
    if blamed & set(groups_of(Words.parse(argv).config_dirs)):
        return []
    try:
        return compose_all(
            [word for word in argv if word.partition("=")[0].lstrip("+~") not in blamed]
        )
    except InputError:
        return []


def answer_as_hydra(argv: Sequence[str], program: str) -> None:
    """Let Hydra itself answer --cfg, --help, --hydra-help, --info and --shell-completion."""
    import sys

    import hydra

    if "install=bash" in argv:
        print(hydra_help.completion_script(), end="")
        return
    if "COMP_LINE" in os.environ:
        os.environ["COMP_LINE"] = hydra_help.as_one_program(os.environ["COMP_LINE"])
    own = Path.cwd() / "conf"
    more = ["--config-dir", str(own)] if own.is_dir() and own.resolve() != CONF.resolve() else []

    def nothing(config: Any) -> None: ...

    nothing.__module__ = program.rpartition(" ")[2]  # --help names the program after it
    sys.argv = [program, *more, *(_known_to_hydra(word) for word in argv)]
    with _further_keys() if {"--help", "-h"} & set(argv) else nullcontext():
        hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")(
            nothing
        )()


@contextmanager
def _further_keys() -> Iterator[None]:
    """What the schema has beyond the YAML files that Hydra shows, after its help, which ends the
    program.
    """
    with initialize_config_dir(config_dir=str(CONF.resolve()), version_base="1.3"):
        composed: Any = OmegaConf.to_container(hydra_compose("config"))
    try:
        yield
    finally:
        print(hydra_help.further_keys(building.flat(composed)))


def _known_to_hydra(word: str) -> str:
    """As `submit` takes it: `+group=x` as `group=x`, keys of the schema though no YAML file spells
    them out.
    """
    key, equals, _ = word.partition("=")
    known = equals and key_problem(key.lstrip("+")) is None
    return force(word) if known else plain_group(word, [CONF.resolve()])


@contextmanager
def _hydra(words: Words) -> Iterator[None]:
    with initialize_config_dir(
        config_dir=str(words.config_dirs[0]), version_base="1.3", job_name="hpc_llm"
    ):
        yield


def _checked(words: Words, *, search: bool = False) -> list[Override]:
    """The overrides with every unknown key, group or preset reported at once."""
    groups = groups_of(words.config_dirs)
    parser = OverridesParser.create()
    checked = []
    good = []
    problems = []
    for word in words.overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            problems.append(
                f"{word!r}: key=value is expected, in Hydra's override syntax (quote values with "
                "spaces)"
            )
            continue
        override.config_loader = _Presets(groups)  # type: ignore[assignment]
        key = override.key_or_group
        problem = _group_problem(override, groups) if key in groups else key_problem(key)
        if isinstance(override.value(), IntervalSweep) and not search:
            problem = f"{word}: an interval is for a search; add search.trials=N, or give values"
        if problem:
            problems.append(problem)
        else:
            good.append(override)
        checked.append(override)
    if problems:
        # The rest of the command line is composed too, so that its mistakes show up in the same go.
        try:
            _compose_columns(_columns(good, words), words)
        except InputError as error:
            problems += error.problems
        raise InputError(problems)
    return checked


@dataclass(frozen=True)
class _Presets:
    """What Hydra's parser asks of a config loader to expand `glob(…)`: the presets of a group."""

    groups: dict[str, set[str]]

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        return sorted(self.groups.get(group, ()))


def _group_problem(override: Override, groups: dict[str, set[str]]) -> str | None:
    group = override.key_or_group
    if override.is_delete():
        return None
    chosen: Any = (
        list(override.sweep_string_iterator()) if override.is_sweep_override() else override.value()
    )
    if override.is_sweep_override() and any(name.startswith("[") for name in chosen):
        return None  # lists of presets are Hydra's to judge
    if chosen is None:
        return f"{group}=null: a preset is expected; allowed: {nearest('', groups[group], most=20)}"
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if str(name) not in groups[group]:
            return (
                f"{group}={name}: no such preset; allowed: "
                f"{nearest(str(name), groups[group], most=20)}"
            )
    return None


@dataclass(frozen=True)
class _Column:
    """One word of the command line, and all the words that a sweep makes of it."""

    override: Override
    words: list[str]

    @property
    def swept(self) -> bool:
        return len(self.words) > 1


def _columns(overrides: list[Override], words: Words) -> list[_Column]:
    columns: dict[str, _Column] = {}
    for position, override in enumerate(overrides):
        typed = [override.input_line or ""]
        if override.is_sweep_override():
            if not words.multirun:
                raise InputError(
                    f"{override.input_line}: several values are a sweep; {words.remedy}"
                )
            typed = [
                f"{override.get_key_element()}={value}"
                for value in override.sweep_string_iterator()
            ]
        # As Hydra's sweeper: of a word given twice the last one counts, in the place of the first.
        columns[override.get_key_element() if words.multirun else str(position)] = _Column(
            override, typed
        )
    return list(columns.values())


def _compose_columns(columns: list[_Column], words: Words) -> list[Choice]:
    """Every combination, the last column fastest; InputError with the mistakes of all.

    Hydra needs 40 to 140 ms a composition. So it composes once for every choice of presets, and
    what only sets a value is set afterwards, in what it composed and before interpolations are
    resolved: the order Hydra has, too.
    """
    late = [_late_values(column, columns, words) for column in columns]
    composed: dict[tuple[str, ...], DictConfig] = {}
    choices = []
    problems = []
    for chosen in itertools.product(*(column.words for column in columns)):
        early = tuple(word for word, values in zip(chosen, late, strict=True) if word not in values)
        try:
            if early not in composed:
                composed[early] = _compose_one(list(early), words)
            for word, column, values in zip(chosen, columns, late, strict=True):
                if word in values:
                    OmegaConf.update(
                        composed[early],
                        column.override.key_or_group,
                        values[word],
                        merge=True,
                        force_add=True,
                    )
            config = _resolve(composed[early])
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        swept = {
            column.override.key_or_group: word.partition("=")[2]
            for word, column in zip(chosen, columns, strict=True)
            if column.swept
        }
        choices.append(Choice(config, swept))
    if problems:
        raise InputError(problems)
    return choices


def _late_values(column: _Column, columns: list[_Column], words: Words) -> dict[str, Any]:
    """Word → value for a swept column of scalars whose key no other word touches; else empty, for
    Hydra to do.
    """
    override = column.override
    groups = groups_of(words.config_dirs)
    key = override.key_or_group
    others = [other.override.key_or_group for other in columns if other is not column]
    touched = (f"{other}." for other in others if other not in groups)
    if (
        not column.swept
        or key in groups
        or key.partition(".")[0] == "hydra"
        or override.package is not None
        or override.is_delete()
        or any(f"{key}.".startswith(other) or other.startswith(f"{key}.") for other in touched)
    ):
        return {}
    parser = OverridesParser.create()
    try:
        values = {word: parser.parse_override(force(word)).value() for word in column.words}
    except HydraException:
        return {}
    return {} if any(isinstance(value, (dict, list)) for value in values.values()) else values


def _compose_one(overrides: list[str], words: Words) -> DictConfig:
    groups = groups_of(words.config_dirs)
    lines = [
        word if word.lstrip("+~").partition("=")[0].partition("@")[0] in groups else force(word)
        for word in overrides
    ]
    try:
        composed = hydra_compose("config", [*lines, _search_path(words)])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(" ".join(str(error).split())) from error
    OmegaConf.set_struct(composed, False)
    return composed


def _search_path(words: Words) -> str:
    """The word that tells Hydra of the user's own folders."""
    quoted = [str(folder).replace("'", r"\'") for folder in words.config_dirs[1:]]
    return "hydra.searchpath=[" + ",".join(f"'file://{folder}'" for folder in quoted) + "]"


def _resolve(composed: DictConfig) -> RunConfig:
    """Interpolations resolved, types checked."""
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise InputError(" ".join(str(error).split())) from error
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    plain.setdefault("trackers", {})
    return building.build(RunConfig, {str(key): value for key, value in plain.items()})
