"""Words of the command line → Hydra composition → RunConfig.

Hydra composes untyped; types, unknown keys and missing values are checked against the schema, so
that the user sees every mistake at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hpc_llm.config import hydra_seam
from hpc_llm.config.columns import Choice, checked_columns, compose_columns, compose_words
from hpc_llm.config.errors import InputError
from hpc_llm.config.overrides import with_named_sweep
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import Words, groups_of


def compose(argv: Sequence[str]) -> RunConfig:
    """The one configuration that `argv` describes; InputError lists all that is wrong with it."""
    for word in argv:
        if word in ("-m", "--multirun"):
            raise InputError(
                f"{word}: a sweep is for submit and plan; here leave it out, and give each key "
                "one value"
            )
    words = Words.parse(argv)
    remedy = "submit and plan can; here give each key one value"
    return _composed(dataclasses.replace(words, remedy=remedy))[0].config


def compose_all(argv: Sequence[str]) -> list[RunConfig]:
    """Every configuration of a sweep in Hydra's order, or the single one without `-m`."""
    return [choice.config for choice in compose_sweep(argv)]


def compose_sweep(argv: Sequence[str]) -> list[Choice]:
    """As `compose_all`, each with what the sweep chose for it.

    InputError lists the mistakes of all of them.
    """
    return _composed(Words.parse(argv))


def _composed(words: Words) -> list[Choice]:
    with hydra_seam.opened(words.config_dirs[0]):
        words = with_named_sweep(words)
        return compose_columns(checked_columns(words), words)


def searches(argv: Sequence[str]) -> bool:
    """Whether `argv` describes a search: by search.trials in its words, or in a preset's."""
    words = Words.parse(argv)
    typed = _typed_trials(words)
    if typed is not None:
        return typed != "null"
    if not words.multirun:
        return False
    try:
        return _presets_search(words)
    except InputError:
        return False  # composing the whole says what is wrong


def _presets_search(words: Words) -> bool:
    """Whether the presets that `words` choose describe a search."""
    with hydra_seam.opened(words.config_dirs[0]):
        words = with_named_sweep(words)
        groups = groups_of(words.config_dirs)
        presets = [word for word in words.overrides if word.partition("=")[0] in groups]
        columns = checked_columns(dataclasses.replace(words, overrides=presets))
        composed = compose_words([column.words[0] for column in columns], words)
        return _typed_trials(words) is not None or composed.select("search.trials") is not None


def _typed_trials(words: Words) -> str | None:
    """The last value that was typed for search.trials."""
    typed = None
    for word in words.overrides:
        key, _, value = word.partition("=")
        if key.lstrip("+") == "search.trials":
            typed = value
    return typed


def sound_part(argv: Sequence[str], problems: Sequence[str]) -> list[RunConfig]:
    """What `argv` describes without the words that `problems` name.

    It shows further mistakes in the same go. Empty where a preset is wrong: nobody knows what its
    values would have meant for the others.
    """
    blamed = {re.split("[=:]", problem, maxsplit=1)[0].lstrip("'") for problem in problems}
    if blamed & set(groups_of(Words.parse(argv).config_dirs)):
        return []
    sound = []
    for word in argv:
        if word.partition("=")[0].lstrip("+~") not in blamed:
            sound.append(word)
    try:
        return compose_all(sound)
    except InputError:
        return []
