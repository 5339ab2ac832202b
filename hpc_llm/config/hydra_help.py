"""Hydra's own answers to --cfg, --help, --info and completion, in the terms of our commands.

Hydra takes the first word of a line for the program; ours are `hpc-llm VERB` and `python -m
hpc_llm.VERB`. And it shows what YAML files spell out; the schema has more keys.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from hpc_llm.config import building, hydra_seam
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import CONF, all_keys, force, key_problem, plain_group

_PROGRAM = re.compile(
    r"\s*(?:\S*hpc-llm\s+\w+(?=\s|$)|\S*python[\d.]*\s+-m\s+hpc_llm(?:\.\w+|\s+\w+(?=\s|$)))"
)


def answer_as_hydra(argv: Sequence[str], program: str) -> None:
    """Let Hydra answer the flags in `argv`; with --help, the keys of no YAML file come after it."""
    if "install=bash" in argv:
        print(completion_script(), end="")
        return
    line = os.environ.get("COMP_LINE")
    if line is not None:
        os.environ["COMP_LINE"] = as_one_program(line)
    own = Path.cwd() / "conf"
    folders = [CONF.resolve()]
    flags = []
    if own.is_dir() and own.resolve() != CONF.resolve():
        folders.append(own)
        flags = ["--config-dir", str(own)]
    known = [_known_to_hydra(word) for word in argv]
    asks_for_help = "--help" in argv or "-h" in argv
    spelt = hydra_seam.spelt(CONF.resolve()) if asks_for_help else {}
    try:
        hydra_seam.answer(folders, program, [*flags, *known])
    finally:  # Hydra's help ends the program
        if asks_for_help:
            print(further_keys(building.flat(spelt)))


def _known_to_hydra(word: str) -> str:
    """As `submit` takes it: `+group=x` as `group=x`, and every key of the schema."""
    key, equals, _ = word.partition("=")
    if equals and key_problem(key.lstrip("+")) is None:
        return force(word)
    return plain_group(word, [CONF.resolve()])


def completion_script() -> str:
    """What `eval "$(python -m hpc_llm.submit -sc install=bash)"` runs."""
    python = shlex.quote(sys.executable)
    return f"""\
_hpc_llm() {{
    [[ $COMP_LINE == *hpc?llm* ]] || return
    local choices; choices=$(COMP_LINE="$COMP_LINE" {python} -m hpc_llm.submit -sc query=bash)
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _hpc_llm hpc-llm python python3
"""


def as_one_program(line: str) -> str:
    """The command line with a single word for our program, which has two or three."""
    return _PROGRAM.sub("hpc-llm", line, count=1)


def further_keys(spelt: Container[str]) -> str:
    """A line for every key of the schema that is not among `spelt`: its default and its type."""
    keys = [key for key in all_keys(RunConfig) if key not in spelt]
    return "\n".join(["== Further keys, as they are unless given ==", *map(_key_line, keys)])


def _key_line(key: str) -> str:
    kind: Any = RunConfig
    *sections, last = key.split(".")
    for section in sections:
        kind = building.section_class(building.field_types(kind)[section])
    default = json.dumps(building.default_value(kind, last)).replace('"', "")
    return f"{key}={default}  # {building.describe(building.field_types(kind)[last])}"
