"""The one file that imports Hydra and OmegaConf: overrides, composition, Hydra's own answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.config import hints
from hpc_llm.config.errors import InputError

try:
    import hydra
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser import types
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from hpc_llm.config import yaml_files
except ModuleNotFoundError as error:  # what every verb that composes imports first
    print(f"hpc_llm: {hints.not_installed(error)}", file=sys.stderr)
    sys.exit(2)

_CONFIG = "config"  # conf/config.yaml
_VERSION = "1.3"

OmegaConf.register_new_resolver(
    "scale", lambda value, factor: float(value) * float(factor), replace=True
)


@dataclass(frozen=True)
class Interval:
    """Numbers among which a search chooses."""

    low: float
    high: float
    log: bool
    whole: bool  # whole numbers only


class Override:
    """One word of the command line, parsed."""

    def __init__(self, parsed: types.Override) -> None:
        self._parsed = parsed
        self.text = parsed.input_line or ""  # as typed
        self.key = parsed.key_or_group  # a dotted key or a group
        self.element = parsed.get_key_element()  # the key with its signs and its package
        self.package = parsed.package
        self.is_delete = parsed.is_delete()
        self.is_sweep = parsed.is_sweep_override()

    @property
    def value(self) -> Any:
        """Plain data; only where it is no sweep."""
        return self._parsed.value()

    @property
    def interval(self) -> Interval | None:
        """The interval that it asks for, if it does."""
        value = self._parsed.value()
        if not isinstance(value, types.IntervalSweep):
            return None
        assert value.start is not None
        assert value.end is not None
        whole = isinstance(value.start, int)
        return Interval(value.start, value.end, log="log" in value.tags, whole=whole)

    def sweep_values(self) -> list[str]:
        """The values of a sweep, as words."""
        return list(self._parsed.sweep_string_iterator())


@dataclass(frozen=True)
class _Presets:
    """What Hydra's parser asks of a config loader to expand `glob(…)`: the presets of a group."""

    groups: Mapping[str, set[str]]

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        return sorted(self.groups.get(group, ()))


def parse(word: str, groups: Mapping[str, set[str]]) -> Override:
    """`word` in Hydra's syntax; InputError if it is not. groups: their presets, for `glob(…)`."""
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        raise InputError(
            f"{word!r}: key=value is expected, in Hydra's override syntax (quote values with "
            "spaces, commas or brackets: \"key='a, b'\")"
        ) from None
    parsed.config_loader = _Presets(groups)  # type: ignore[assignment]
    return Override(parsed)


class Composed:
    """A composed configuration whose interpolations are yet to be resolved."""

    def __init__(self, tree: DictConfig) -> None:
        self._tree = tree

    @classmethod
    def from_yaml(cls, text: str) -> Composed:
        """What `to_yaml` made."""
        tree = OmegaConf.create(text)
        assert isinstance(tree, DictConfig)
        return cls(tree)

    def to_yaml(self) -> str:
        """Its text, interpolations as they are."""
        return OmegaConf.to_yaml(self._tree)

    def select(self, key: str) -> Any:
        """The value of a dotted key, resolved."""
        return OmegaConf.select(self._tree, key)

    def set(self, key: str, value: Any) -> None:
        """Give a dotted key a value, as an override would."""
        OmegaConf.update(self._tree, key, value, merge=True, force_add=True)

    def replace(self, key: str, value: Any) -> None:
        """Put a value in the place of what a dotted key holds."""
        OmegaConf.update(self._tree, key, value)

    def resolved(self) -> dict[str, Any]:
        """Plain data with all interpolations resolved; InputError if one cannot be."""
        try:
            plain = OmegaConf.to_container(self._tree, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException as error:
            raise InputError(_one_line(error)) from error
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Within, `compose` and its like read the configuration in `folder`."""
    with initialize_config_dir(config_dir=str(folder), version_base=_VERSION, job_name="hpc_llm"):
        yield


@contextmanager
def _composing(folders: Sequence[Path]) -> Iterator[None]:
    """Inside, what Hydra, its parsers or the files in `folders` raise is an InputError."""
    try:
        yield
    except yaml.YAMLError as error:
        raise InputError(yaml_files.no_yaml(error)) from error
    except UnicodeDecodeError as error:  # it does not name the file
        found = list(yaml_files.not_utf8(folders))
        raise InputError(found or f"a preset is not UTF-8: {error}") from error
    except RecursionError as error:
        raise InputError("defaults: presets name each other in a circle; break it") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise InputError(_one_line(error)) from error
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def compose(overrides: Sequence[str], folders: Sequence[Path]) -> Composed:
    """What Hydra makes of the configuration and `overrides`; InputError in its words."""
    with _composing(folders):
        tree = hydra_compose(_CONFIG, list(overrides))
    OmegaConf.set_struct(tree, False)
    return Composed(tree)


def sweeper_params(overrides: Sequence[str]) -> dict[str, str]:
    """hydra.sweeper.params: key → values in the syntax of sweeps, in the order that they vary.

    Empty where `overrides` cannot be composed.
    """
    try:
        tree = hydra_compose(_CONFIG, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        return {}
    params = tree.hydra.sweeper.get("params") or {}
    return {str(key): str(values) for key, values in params.items()}


def spelt(folder: Path) -> dict[str, Any]:
    """What the YAML files in `folder` spell out by themselves, unresolved."""
    with opened(folder):
        plain: Any = OmegaConf.to_container(hydra_compose(_CONFIG))
    return plain


def answer(folders: Sequence[Path], program: str, argv: Sequence[str]) -> None:
    """Let Hydra answer --cfg, --help, --hydra-help, --info or --shell-completion in `argv`.

    InputError as `compose`.
    """

    def nothing(config: Any) -> None: ...

    nothing.__module__ = program.rpartition(" ")[2]  # --help names the program after it
    sys.argv = [program, *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, not printed
    with _composing(folders):
        hydra.main(version_base=_VERSION, config_path=str(folders[0]), config_name=_CONFIG)(
            nothing
        )()


def _one_line(error: BaseException) -> str:
    """What an error says, or the one behind it: the key first, and no list of all folders."""
    text = " ".join(str(error).split()).partition(" Config search path: ")[0]
    why, _, key = text.partition(" full_key: ")
    if key:
        return f"{key.split()[0]}: {why}"
    if why:
        return why
    behind = error.__cause__ or error.__context__
    return _one_line(behind) if behind else type(error).__name__
