"""The words of `prepare inspect=DIR`.

DIR is a run directory with its frozen configuration, or a folder of prepared data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config import checks
from hpc_llm.config.compose import compose
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig, SourceConfig
from hpc_llm.data.manifest import MANIFEST, Manifest, read_manifest
from hpc_llm.planning.lengths import Lengths, lengths
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout

_DEFAULTS = {"inspect": "", "step": "1", "rows": "8"}
_EXAMPLES = {"inspect": "runs/NAME", "step": "100", "rows": "16"}


@dataclass(frozen=True)
class Inspection:
    """What is to be shown."""

    config: RunConfig
    plan: RunPlan | Lengths
    directory: Path  # of the shards
    step: int  # from 1
    rows: int


def read_words(argv: Sequence[str]) -> Inspection:
    """What is to be shown; InputError with all that is wrong with the words."""
    values, rest = _sorted_out(argv)
    step, rows = _counts(values)
    folder = Path(values["inspect"]).expanduser()
    if (folder / MANIFEST).exists():
        config = _of_data(read_manifest(folder), compose(rest))
        if problems := checks.problems(config):
            raise InputError(problems)
        return Inspection(config, lengths(config, None), folder, step, rows)
    layout = RunLayout(folder)
    if not layout.config.exists():
        raise InputError(
            f"inspect={folder}: neither a run directory (config.json) nor prepared data "
            f"({MANIFEST}); give the folder that submit or prepare named"
        )
    if rest:
        raise InputError(
            f"{word}: a run is shown as it was frozen; give step=… and rows=… alone"
            for word in rest
        )
    plan = freeze.read_plan(layout)
    return Inspection(freeze.read_config(layout), plan, Path(plan.data_directory), step, rows)


def _sorted_out(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of inspect, step and rows, and the other words."""
    values = dict(_DEFAULTS)
    rest = []
    problems = []
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in _DEFAULTS:
            rest.append(word)
        elif not equals:
            problems.append(f"{key}: a value is expected, for example {key}={_EXAMPLES[key]}")
        else:
            values[key] = value
    if problems:
        raise InputError(problems)
    return values, rest


def _counts(values: Mapping[str, str]) -> tuple[int, int]:
    """step and rows as numbers."""
    problems = []
    for key in ("step", "rows"):
        value = values[key]
        if not value.isdecimal() or int(value) < 1:
            problems.append(f"{key}={value}: a whole number from 1 on is expected")
    if problems:
        raise InputError(problems)
    return int(values["step"]), int(values["rows"])


def _of_data(manifest: Manifest, config: RunConfig) -> RunConfig:
    """`config` for the data of a manifest: its sources, with the weights given for them."""
    names = sorted(manifest.sources)
    if names == config.data.source_names:
        return config
    sources = {}
    if len(names) > 1:
        for name in names:
            sources[name] = config.data.sources.get(name, SourceConfig(path=""))
    source = None if names == ["stdlib"] else "."  # nothing of it is read
    data = dataclasses.replace(config.data, name=names[0], source=source, sources=sources)
    return dataclasses.replace(config, data=data)
