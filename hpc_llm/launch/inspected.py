"""The words of `prepare inspect=DIR`: a run directory with its frozen configuration, or a folder of prepared data."""

from __future__ import annotations

import dataclasses
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

_OWN = {"inspect": "", "step": "1", "rows": "8"}
_EXAMPLES = {"inspect": "runs/NAME", "step": "100", "rows": "16"}


@dataclass(frozen=True)
class Asked:
    config: RunConfig
    plan: RunPlan | Lengths
    directory: Path  # of the shards
    step: int  # from 1
    rows: int


def ask(words: list[str]) -> Asked:
    """What is to be shown; InputError with all that is wrong with the words."""
    if bare := [word for word in words if word in _OWN]:
        raise InputError(f"{word}: a value is expected, for example {word}={_EXAMPLES[word]}" for word in bare)
    given = dict(word.split("=", 1) for word in words if word.partition("=")[0] in _OWN)
    rest = [word for word in words if word.partition("=")[0] not in _OWN]
    values = {**_OWN, **given}
    wrong = [key for key in ("step", "rows") if not values[key].isdecimal() or int(values[key]) < 1]
    if wrong:
        raise InputError(f"{key}={values[key]}: a whole number from 1 on is expected" for key in wrong)
    step, rows = int(values["step"]), int(values["rows"])
    folder = Path(values["inspect"]).expanduser()
    if (folder / MANIFEST).exists():
        config = _of_data(read_manifest(folder), compose(rest))
        if problems := checks.problems(config):
            raise InputError(problems)
        return Asked(config, lengths(config, None), folder, step, rows)
    layout = RunLayout(folder)
    if not layout.config.exists():
        raise InputError(
            f"inspect={folder}: neither a run directory (config.json) nor prepared data ({MANIFEST}); "
            "give the folder that submit or prepare named"
        )
    if rest:
        raise InputError(f"{word}: a run is shown as it was frozen; give step=… and rows=… alone" for word in rest)
    config, plan = freeze.read_config(layout), freeze.read_plan(layout)
    return Asked(config, plan, Path(plan.data_directory), step, rows)


def _of_data(manifest: Manifest, config: RunConfig) -> RunConfig:
    """`config` for the data of a manifest: its sources, with the weights that are given for them."""
    names = sorted(manifest.sources)
    if names == config.data.source_names:
        return config
    sources = {name: config.data.sources.get(name, SourceConfig(path="")) for name in names}
    several = len(names) > 1
    source = None if names == ["stdlib"] else "."  # nothing of it is read
    data = dataclasses.replace(config.data, name=names[0], source=source, sources=sources if several else {})
    return dataclasses.replace(config, data=data)
