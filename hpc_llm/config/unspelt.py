"""Keys that are in no YAML file of ours, for --help: Hydra shows what it composes, but the schema has more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container
from typing import Any

from hpc_llm.config import building
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import all_keys


def text(spelt: Container[str]) -> str:
    """A line for every key of the schema that is not among `spelt`: its default, and what it may be."""
    keys = [key for key in all_keys(RunConfig) if key not in spelt]
    return "\n".join(["== Further keys, as they are unless given ==", *map(_line, keys)])


def _line(key: str) -> str:
    kind: Any = RunConfig
    *sections, last = key.split(".")
    for section in sections:
        kind = building.section_class(building.field_types(kind)[section])
    (field,) = [field for field in dataclasses.fields(kind) if field.name == last]
    words = json.dumps(building.default_of(field)).replace('"', "")
    return f"{key}={words}  # {building.describe(building.field_types(kind)[last])}"
