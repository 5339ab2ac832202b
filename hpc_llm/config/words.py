"""The arguments of a command line, before Hydra sees them, and which presets and keys exist."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.config import building
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.schema import RunConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
_TILDE = re.compile(r"(?<=[=,\[])~/")
HYDRA_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--resolve",
    "--package",
    "-p",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--experimental-rerun",
)


@dataclass(frozen=True)
class Words:
    """A command line, parsed."""

    overrides: list[str]
    multirun: bool
    config_dirs: list[Path]  # ours first; a user's own conf/ and --config-dir add to it
    remedy: str = "add -m"  # of a sweep that was typed without -m

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Words:
        """Flags and overrides of `argv`; `+group=x` is taken as `group=x`."""
        directories = [CONF.resolve()]
        own = Path.cwd() / "conf"
        if own.is_dir() and own.resolve() not in directories:
            directories.append(own.resolve())
        overrides = []
        multirun = False
        rest = iter(argv)
        for word in rest:
            if word in ("-m", "--multirun"):
                multirun = True
            elif word in ("--run", "-r"):
                multirun = False
            elif word in ("--config-dir", "-cd") or word.startswith("--config-dir="):
                given = word.partition("=")[2] if "=" in word else next(rest, "")
                if not given or not Path(given).expanduser().is_dir():
                    raise InputError(f"--config-dir {given}: no such folder")
                directories.append(Path(given).expanduser().resolve())
            elif word.startswith("-") and "=" not in word:
                raise InputError(
                    f"{word}: unknown flag; allowed: "
                    f"{nearest(word, ['-m', '--config-dir', *HYDRA_FLAGS])}"
                )
            else:
                overrides.append(at_home(plain_group(word, directories)))
        return cls(overrides, multirun, directories)


def wants_hydra(argv: Sequence[str]) -> bool:
    """Whether `argv` asks for one of Hydra's own answers (--cfg, --help, --info, completion)."""
    return any(word.split("=")[0] in HYDRA_FLAGS for word in argv)


def plain_group(word: str, directories: list[Path]) -> str:
    """`+group=x` as `group=x`; any other word as it is."""
    key, equals, _ = word.partition("=")
    name = key.lstrip("+")
    if equals and key.startswith("+") and name in groups_of(directories):
        return word.lstrip("+")
    return word


def at_home(word: str) -> str:
    """Expand `~/` at the start of a value.

    Shells do not expand it after a dotted key, and Hydra would refuse it.
    """
    return _TILDE.sub(lambda _: f"{Path.home()}/", word)


def groups_of(directories: list[Path]) -> dict[str, set[str]]:
    """The presets of every group in the configuration folders."""
    options: dict[str, set[str]] = {}
    for directory in directories:
        for path in directory.glob("*/*.yaml"):
            if not path.is_file():
                continue
            options.setdefault(path.parent.name, set()).add(path.stem)
    return options


def search_path(words: Words) -> str:
    """The override that tells Hydra where the user's own folders are."""
    quoted = [str(folder).replace("'", r"\'") for folder in words.config_dirs[1:]]
    folders = ",".join(f"'file://{folder}'" for folder in quoted)
    return f"hydra.searchpath=[{folders}]"


def key_problem(key: str) -> str | None:
    """Why the schema has no such dotted key; None if it has."""
    kind: Any = RunConfig
    parts = key.split(".")
    if parts[0] == "hydra":
        return None
    is_name = False  # whether the next part is a name that the user chose
    for position, part in enumerate(parts):
        if is_name:
            is_name = False
            continue
        fields = building.field_types(kind)
        if part not in fields:
            unknown = ".".join(parts[: position + 1])
            return f"{key}: unknown key {unknown}; {_hint(part, parts[-1], fields)}"
        section = building.section_class(fields[part])
        if section is None:
            section = building.named_class(fields[part])
            if section is not None and len(parts) <= position + 2:
                return None  # all named entries, or one of them, given as a mapping
            is_name = section is not None
        if section is None:
            is_last = position == len(parts) - 1
            return None if is_last else _no_keys(key, parts[: position + 1], fields[part])
        kind = section
    return f"{key}: a group of keys; set one of them: {nearest('', building.field_types(kind))}"


def _hint(unknown: str, last: str, fields: Mapping[str, Any]) -> str:
    """The keys of this name in other sections, or those of this section."""
    same = []
    for name in all_keys(RunConfig):
        if name.rpartition(".")[2] == last:
            same.append(name)
    if same:
        return f"did you mean {' or '.join(same)}?"
    return f"allowed: {nearest(unknown, fields)}"


def _no_keys(key: str, parts: list[str], annotation: Any) -> str | None:
    """That the value at `parts` is no section; None if it is a mapping with any keys."""
    description = building.describe(annotation)
    if description.startswith("a mapping"):
        return None
    return f"{key}: {'.'.join(parts)} is {description} and has no keys"


def all_keys(kind: type, prefix: str = "") -> list[str]:
    """Dotted keys of a schema, in its order."""
    names = []
    for name, annotation in building.field_types(kind).items():
        section = building.section_class(annotation)
        if section:
            names += all_keys(section, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def force(word: str) -> str:
    """`key=value` as `++key=value`: the schema decides which keys exist, not YAML files."""
    if word.startswith(("~", "hydra.", "+hydra.", "++")):
        return word
    return "++" + word.lstrip("+")
