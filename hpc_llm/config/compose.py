"""Words of the command line → Hydra composition → RunConfig. The only file that imports Hydra.

Hydra composes untyped; types, unknown keys and missing values are checked against the schema, so that
the user sees every mistake at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc_llm.config import schema
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.schema import RunConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
HYDRA_FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i"),
    *("--shell-completion", "-sc", "--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"),
)

OmegaConf.register_new_resolver("scale", lambda value, factor: float(value) * float(factor), replace=True)


@dataclass(frozen=True)
class Words:
    """A command line, taken apart."""

    overrides: list[str]
    multirun: bool
    config_dirs: list[Path]  # ours first; a user's own conf/ and --config-dir add to it

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Words:
        """Flags and overrides of `argv`; `+group=x` is taken as `group=x`."""
        directories = [CONF.resolve()]
        own = Path.cwd() / "conf"
        if own.is_dir() and own.resolve() not in directories:
            directories.append(own.resolve())
        overrides, multirun, rest = [], False, iter(argv)
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
                    f"{word}: unknown flag; allowed: {nearest(word, ['-m', '--config-dir', *HYDRA_FLAGS])}"
                )
            else:
                overrides.append(_plain_group(word, directories))
        return cls(overrides, multirun, directories)


def compose(argv: Sequence[str]) -> RunConfig:
    """The one configuration that `argv` describes; InputError lists all that is wrong with it."""
    configs = compose_all([word for word in argv if word not in ("-m", "--multirun")])
    return configs[0]


def compose_all(argv: Sequence[str]) -> list[RunConfig]:
    """Every configuration of a sweep in Hydra's order, or the single one without `-m`."""
    words = Words.parse(argv)
    with _hydra(words):
        overrides = _checked(words)
        return [_compose_one(list(choice), words) for choice in _choices(overrides, words.multirun)]


def wants_hydra(argv: Sequence[str]) -> bool:
    """Whether `argv` asks for one of Hydra's own answers (--cfg, --help, --info, completion)."""
    return any(word.split("=")[0] in HYDRA_FLAGS for word in argv)


def answer_as_hydra(argv: Sequence[str], program: str) -> None:
    """Let Hydra itself answer --cfg, --help, --hydra-help, --info and --shell-completion."""
    import sys

    import hydra

    own = Path.cwd() / "conf"
    more = ["--config-dir", str(own)] if own.is_dir() and own.resolve() != CONF.resolve() else []
    sys.argv = [program, *more, *(_plain_group(word, [CONF.resolve()]) for word in argv)]
    hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")(lambda config: None)()


def _plain_group(word: str, directories: list[Path]) -> str:
    key, equals, _ = word.partition("=")
    name = key.lstrip("+")
    return word[len(key) - len(name) :] if equals and key.startswith("+") and name in _groups(directories) else word


def _groups(directories: list[Path]) -> dict[str, set[str]]:
    options: dict[str, set[str]] = {}
    for path in (path for directory in directories for path in directory.glob("*/*.yaml")):
        options.setdefault(path.parent.name, set()).add(path.stem)
    return options


@contextmanager
def _hydra(words: Words) -> Iterator[None]:
    with initialize_config_dir(config_dir=str(words.config_dirs[0]), version_base="1.3", job_name="hpc_llm"):
        yield


def _checked(words: Words) -> list[Override]:
    """The overrides with every unknown key, group or preset reported at once."""
    parser, groups, checked, problems = OverridesParser.create(), _groups(words.config_dirs), [], []
    for word in words.overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            problems.append(f"{word!r}: key=value is expected, in Hydra's override syntax (quote values with spaces)")
            continue
        key = override.key_or_group
        problem = _group_problem(override, groups) if key in groups else _key_problem(key)
        if problem:
            problems.append(problem)
        checked.append(override)
    if problems:
        # The rest of the command line is composed too, so that its mistakes show up in the same go.
        bad = [override for override in checked if override.key_or_group in groups and _group_problem(override, groups)]
        good = [o for o in checked if o not in bad and (o.key_or_group in groups or not _key_problem(o.key_or_group))]
        try:
            for choice in itertools.islice(_choices(good, words.multirun), 1):
                _compose_one(list(choice), words)
        except InputError as error:
            problems += error.problems
        raise InputError(problems)
    return checked


def _group_problem(override: Override, groups: dict[str, set[str]]) -> str | None:
    group, chosen = override.key_or_group, override.value()
    if override.is_sweep_override() or override.is_delete():
        return None
    if chosen is None:
        return f"{group}=null: a preset is expected; allowed: {nearest('', groups[group], most=20)}"
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if str(name) not in groups[group]:
            return f"{group}={name}: no such preset; allowed: {nearest(str(name), groups[group], most=20)}"
    return None


def _key_problem(key: str) -> str | None:
    kind: Any = RunConfig
    parts = key.split(".")
    if parts[0] == "hydra":
        return None
    for position, part in enumerate(parts):
        fields = schema.field_types(kind)
        if part not in fields:
            prefix = ".".join(parts[:position]) + "." if position else ""
            everywhere = _all_keys(RunConfig)
            same = [name for name in everywhere if name.rpartition(".")[2] == parts[-1]]
            hint = f"did you mean {' or '.join(same)}?" if same else f"allowed: {nearest(part, fields)}"
            return f"{key}: unknown key {prefix}{part}; {hint}"
        section = schema.section_class(fields[part])
        if section is None:
            if position < len(parts) - 1 and not schema.describe(fields[part]).startswith("a mapping"):
                return f"{key}: {'.'.join(parts[: position + 1])} is {schema.describe(fields[part])} and has no keys"
            return None
        kind = section
    return f"{key}: a group of keys; set one of them: {nearest('', schema.field_types(kind))}"


def _all_keys(kind: type, prefix: str = "") -> list[str]:
    names = []
    for name, annotation in schema.field_types(kind).items():
        section = schema.section_class(annotation)
        names += _all_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return names


def _choices(overrides: list[Override], multirun: bool) -> Iterator[tuple[str, ...]]:
    """One tuple of override strings per run."""
    columns = []
    for override in overrides:
        if override.is_sweep_override():
            if not multirun:
                raise InputError(f"{override.input_line}: several values are a sweep; add -m")
            key = override.get_key_element()
            columns.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            columns.append([override.input_line or ""])
    yield from itertools.product(*columns)


def _compose_one(overrides: list[str], words: Words) -> RunConfig:
    groups = _groups(words.config_dirs)
    lines = [
        word if word.lstrip("+~").partition("=")[0].partition("@")[0] in groups else _force(word) for word in overrides
    ]
    quoted = [str(folder).replace("'", r"\'") for folder in words.config_dirs[1:]]
    path = "[" + ",".join(f"'file://{folder}'" for folder in quoted) + "]"
    try:
        composed = hydra_compose("config", [*lines, f"hydra.searchpath={path}"])
        OmegaConf.set_struct(composed, False)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(" ".join(str(error).split())) from error
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    plain.setdefault("trackers", {})
    return schema.build(RunConfig, {str(key): value for key, value in plain.items()})


def _force(word: str) -> str:
    """`key=value` as `++key=value`: the schema, already asked, decides what exists, not the YAML file."""
    return word if word.startswith(("~", "hydra.", "+hydra.", "++")) else "++" + word.lstrip("+")
