"""Bash completion: Hydra's answers, through a shell function that knows how our commands are typed.

Hydra takes the first word of a line for the program; ours are `hpc-llm VERB` and `python -m
hpc_llm.VERB`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Container
from typing import Any

from hpc_llm.config import building
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import all_keys

_PROGRAM = re.compile(
    r"\s*(?:\S*hpc-llm\s+\w+(?=\s|$)|\S*python[\d.]*\s+-m\s+hpc_llm(?:\.\w+|\s+\w+(?=\s|$)))"
)


def completion_script() -> str:
    """What `eval "$(python -m hpc_llm.submit -sc install=bash)"` runs."""
    return f"""\
_hpc_llm() {{
    [[ $COMP_LINE == *hpc?llm* ]] || return
    local choices; choices=$(COMP_LINE="$COMP_LINE" {shlex.quote(sys.executable)} -m hpc_llm.submit -sc query=bash)
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _hpc_llm hpc-llm python python3
"""


def as_one_program(line: str) -> str:
    """The command line with a single word for our program, which has two or three."""
    return _PROGRAM.sub("hpc-llm", line, count=1)


# -- Keys that are in no YAML file of ours, for --help: Hydra shows what it composes, but the schema
# has more.


def further_keys(spelt: Container[str]) -> str:
    """A line for every key of the schema that is not among `spelt`: its default, and what it may
    be.
    """
    keys = [key for key in all_keys(RunConfig) if key not in spelt]
    return "\n".join(["== Further keys, as they are unless given ==", *map(_key_line, keys)])


def _key_line(key: str) -> str:
    kind: Any = RunConfig
    *sections, last = key.split(".")
    for section in sections:
        kind = building.section_class(building.field_types(kind)[section])
    (field,) = [field for field in dataclasses.fields(kind) if field.name == last]
    words = json.dumps(building.default_of(field)).replace('"', "")
    return f"{key}={words}  # {building.describe(building.field_types(kind)[last])}"
