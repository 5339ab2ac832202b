"""The overrides of a command line, checked: every unknown key, group or preset at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hpc_llm.config import hydra_seam
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.hydra_seam import Override
from hpc_llm.config.words import Words, groups_of, key_problem, search_path

_MOST_PRESETS = 20  # that a message names


@dataclasses.dataclass(frozen=True)
class Checked:
    """Overrides that are sound, in their order, and one sentence for each of the others."""

    overrides: list[Override]
    problems: list[str]


def check(words: Words, *, search: bool = False) -> Checked:
    """The overrides of `words`. search: whether an interval is allowed."""
    groups = groups_of(words.config_dirs)
    sound = []
    problems = []
    for word in words.overrides:
        try:
            override = hydra_seam.parse(word, groups)
        except InputError as error:
            problems += error.problems
            continue
        problem = _problem(override, groups)
        if not search and override.interval is not None:
            problem = f"{word}: an interval is for a search; add search.trials=N, or give values"
        if problem is None:
            sound.append(override)
        else:
            problems.append(problem)
    return Checked(sound, problems)


def _problem(override: Override, groups: Mapping[str, set[str]]) -> str | None:
    if override.key in groups:
        return _group_problem(override, groups[override.key])
    return key_problem(override.key)


def _group_problem(override: Override, presets: set[str]) -> str | None:
    group = override.key
    if override.is_delete:
        return None
    names = _chosen_presets(override)
    if override.is_sweep and any(name.startswith("[") for name in names):
        return None  # lists of presets are Hydra's to judge
    for name in names:
        if name is None:
            allowed = nearest("", presets, most=_MOST_PRESETS)
            return f"{group}=null: a preset is expected; allowed: {allowed}"
        if str(name) not in presets:
            allowed = nearest(str(name), presets, most=_MOST_PRESETS)
            return f"{group}={name}: no such preset; allowed: {allowed}"
    return None


def _chosen_presets(override: Override) -> list[Any]:
    if override.is_sweep:
        return override.sweep_values()
    value = override.value
    return value if isinstance(value, list) else [value]


def with_named_sweep(words: Words) -> Words:
    """The words with what the chosen experiment sweeps before those of the user.

    An experiment names it in hydra.sweeper.params, as in Hydra.
    """
    typed = _typed_experiment(words)
    known = groups_of(words.config_dirs)["experiment"]
    names = [name for name in typed.split(",") if name in known]
    sweeps = {}
    for name in names:
        params = hydra_seam.sweeper_params([f"experiment={name}", search_path(words)])
        if params:
            sweeps[name] = params
    if not sweeps:
        return words
    if len(names) > 1:
        raise InputError(
            f"experiment={typed}: {next(iter(sweeps))} is a sweep of its own; submit it by itself"
        )
    if not words.multirun:
        raise InputError(f"experiment={names[0]}: it is a sweep; {words.remedy}")
    swept = [f"{key}={values}" for key, values in sweeps[names[0]].items()]
    return dataclasses.replace(words, overrides=[*swept, *words.overrides])


def _typed_experiment(words: Words) -> str:
    """The value of the last experiment=…; empty without one."""
    typed = ""
    for word in words.overrides:
        key, _, value = word.partition("=")
        if key == "experiment":
            typed = value
    return typed
