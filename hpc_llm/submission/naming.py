"""Names for the runs of a sweep: pure functions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence

from hpc_llm.config.columns import Choice
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs.identity import digest_of

_MOST_CHARACTERS = 80


def name_runs(choices: Sequence[Choice]) -> list[RunConfig]:
    """The configurations with run.sweep and run.name set, so that every run has its own folder.

    A sweep is named by run.sweep or run.name; without them its name is derived from what its runs
    train, so that the same arguments mean the same sweep again. InputError if two runs would have
    the same folder.
    """
    configs = [choice.config for choice in choices]
    if len(configs) == 1:
        return configs
    sweeps = []
    if "run.name" in choices[0].swept:
        names = []
        for config in configs:
            names.append(str(config.run.name))
            sweeps.append(config.run.sweep)
    else:
        _refuse_duplicates(choices)
        names = run_names([choice.swept for choice in choices])
        for config in configs:
            sweeps.append(config.run.sweep or config.run.name)
    derived = None if all(sweeps) else derived_name(configs)
    placed = []
    for config, name, sweep in zip(configs, names, sweeps, strict=True):
        section = dataclasses.replace(config.run, name=name, sweep=sweep or derived)
        placed.append(dataclasses.replace(config, run=section))
    _refuse_shared_folders(placed)
    return placed


def _refuse_duplicates(choices: Sequence[Choice]) -> None:
    """InputError if the arguments ask for the same run twice.

    They may spell it in two ways (1e-4 and 0.0001).
    """
    seen: set[str] = set()
    for choice in choices:
        text = json.dumps(dataclasses.asdict(choice.config), sort_keys=True)
        if text in seen:
            label = " ".join(f"{key}={value}" for key, value in choice.swept.items())
            raise InputError(
                f"{label}: this sweep has it twice; sweep distinct values (run.seed for "
                "repetitions)"
            )
        seen.add(text)


def _refuse_shared_folders(configs: Sequence[RunConfig]) -> None:
    """InputError if several runs would lie in the same folder; it names the first by name."""
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    for config in configs:
        counts[config.run.root, config.run.sweep, config.run.name] += 1
    repeated = sorted(str(name) for (_, _, name), count in counts.items() if count > 1)
    if repeated:
        raise InputError(
            f"run.name={repeated[0]}: several runs of this sweep have it; sweep distinct values"
        )


def run_names(swept: Sequence[dict[str, str]]) -> list[str]:
    """`lr=1e-4,seed=2` from {optim.lr: 0.0001, run.seed: 2}.

    Keys are as short as they stay distinct. A name that is too long, or not the only one of its
    kind, ends in a digest of the values.
    """
    short = _short_keys(list(swept[0]))
    names = []
    for values in swept:
        names.append(",".join(f"{short[key]}={_plain(value)}" for key, value in values.items()))
    counts = Counter(names)
    distinct = []
    for name, values in zip(names, swept, strict=True):
        if counts[name] > 1 or len(name) > _MOST_CHARACTERS:
            distinct.append(f"{name[: _MOST_CHARACTERS - 9]}-{_digest(values)}")
        else:
            distinct.append(name)
    return distinct


def derived_name(configs: Sequence[RunConfig]) -> str:
    """The name of a sweep that the user has not named."""
    models = {config.model.name for config in configs}
    model = models.pop() if len(models) == 1 else "models"
    return f"{model}-sweep-{digest_of(configs)}"


def _short_keys(keys: list[str]) -> dict[str, str]:
    """Each key's shortest unique ending: optim.lr → lr, but beside model.recipe.lr → optim.lr."""
    short = {}
    for key in keys:
        others = [other for other in keys if other != key]
        short[key] = _shortest_ending(key, others)
    return short


def _shortest_ending(key: str, others: Collection[str]) -> str:
    """The fewest last words of `key` that are not the last words of one of `others`."""
    for length in range(1, key.count(".") + 1):
        ending = _last_words(key, length)
        if ending not in (_last_words(other, length) for other in others):
            return ending
    return key


def _last_words(key: str, length: int) -> str:
    return ".".join(key.split(".")[-length:])


def _plain(value: str) -> str:
    """A value as part of a folder's name; numbers as short as possible (0.0001 → 1e-4)."""
    if re.fullmatch(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,2})?", value):
        mantissa, _, exponent = f"{float(value):e}".partition("e")
        scientific = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        if float(scientific) == float(value) and len(scientific) < len(value):
            return scientific
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-")


def _digest(values: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
