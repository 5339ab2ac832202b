"""Plain data → the dataclasses of the schema and back, with all errors at once."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from hpc_llm.config.errors import InputError, nearest

T = TypeVar("T")


def build(cls: type[T], data: Mapping[str, Any]) -> T:
    """`data` as a frozen dataclass of type `cls`.

    InputError lists every unknown, missing or ill-typed key.
    """
    problems: list[str] = []
    built = _build(cls, data, "", problems)
    if problems:
        raise InputError(problems)
    return typing.cast(T, built)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a config dataclass, ready for JSON; `build` reverses it."""
    return dataclasses.asdict(config)


def completed(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain `data` of a config dataclass, with the schema's defaults for what it lacks.

    An older version may have written it. Nothing is checked, and a key that the schema has no more
    stays.
    """
    hints = field_types(kind)
    known = dict[str, Any]()
    for item in dataclasses.fields(kind):
        if item.name in data:
            known[item.name] = _completed_value(hints[item.name], data[item.name])
        elif (default := default_of(item)) is not dataclasses.MISSING:
            if dataclasses.is_dataclass(default):
                default = to_dict(default)
            known[item.name] = default
    for key, value in data.items():
        known.setdefault(key, value)
    return known


def _completed_value(annotation: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if section := section_class(annotation):
        return completed(section, value)
    named = named_class(annotation)
    if named is None:
        return value
    return {name: completed(named, item) for name, item in value.items()}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a key is unless given; dataclasses.MISSING where it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def default_value(kind: type, name: str) -> Any:
    """What key `name` of the config dataclass `kind` is unless given."""
    for field in dataclasses.fields(kind):
        if field.name == name:
            return default_of(field)
    raise KeyError(name)


def chosen(config: Any) -> dict[str, Any]:
    """`to_dict` without defaults, so that keys that a later version adds change nothing in it."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != default_of(field):
            values[field.name] = _chosen(value)
    return values


def _chosen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _chosen(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value):
        return chosen(value)
    return value


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} as {a.b: 1}: the keys as a command line spells them."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key=before, now value` for every key in which two trees differ."""
    old = flat(then)
    new = flat(now)
    different = []
    for key in sorted(old | new):
        if old.get(key) != new.get(key):
            different.append(f"{key}={old.get(key)}, now {new.get(key)}")
    return different


def known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without the keys that `cls` has no field for: another version's, of the same format.

    TypeError if `data` is no mapping.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__}: a mapping is expected, not {data!r}")
    names = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in data.items() if key in names}


@functools.cache  # 0.3 ms per class, and a sweep builds a thousand configurations
def field_types(cls: type) -> dict[str, Any]:
    """Resolved type of every field of a config dataclass."""
    return typing.get_type_hints(cls)


@functools.cache  # sixty times for each of ten thousand runs in a status
def section_class(annotation: Any) -> type | None:
    """The dataclass that an annotation such as `X` or `X | None` holds, if any."""
    options: tuple[Any, ...] = (annotation,)
    if typing.get_origin(annotation) is not dict:
        options = typing.get_args(annotation) or options
    for option in options:
        if dataclasses.is_dataclass(option):
            return typing.cast(type, option)
    return None


@functools.cache
def named_class(annotation: Any) -> type | None:
    """The dataclass of the values of an annotation such as `dict[str, X]`, if any."""
    if typing.get_origin(annotation) is not dict:
        return None
    return section_class(typing.get_args(annotation)[1])


def _build(cls: Any, data: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{prefix.rstrip('.')}={data!r}: a group of keys is expected here")
        return None
    hints = field_types(cls)
    for key in data:
        if key not in hints:
            problems.append(f"{prefix}{key}: unknown key; allowed here: {nearest(str(key), hints)}")
    values = {}
    for item in dataclasses.fields(cls):
        name = prefix + item.name
        if item.name in data and data[item.name] != "???":
            values[item.name] = _coerce(hints[item.name], data[item.name], name, problems)
        elif item.name in data or (
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        ):
            problems.append(f"{name}: missing; give it as {name}=…")
    if problems:
        return None
    return cls(**values)


def _coerce(kind: Any, value: Any, name: str, problems: list[str]) -> Any:
    section = section_class(kind)
    if section is not None:
        if value is None and types.NoneType in typing.get_args(kind):
            return None
        return _build(section, value, name + ".", problems)
    unquoted = _unquoted(value, values_too=name.endswith(".where"))
    if unquoted is not None:
        problems.append(f"{name}: YAML reads {unquoted}; write it in quotes")
        return None
    named = named_class(kind)
    if named is not None and isinstance(value, Mapping):
        sections = {}
        for key, item in value.items():
            sections[str(key)] = _build(named, item, f"{name}.{key}.", problems)
        return sections
    try:
        return _convert(kind, value)
    except (ValueError, OverflowError):
        problems.append(f"{name}={value!r}: {describe(kind)} is expected")
        return None


def _unquoted(value: Any, *, values_too: bool) -> str | None:
    """What YAML made of a word in a mapping that is to be text: Norwegian `no` is false.

    values_too: the values are texts to compare with, as the names are.
    """
    if not isinstance(value, Mapping):
        return None
    for key, item in value.items():
        if key is None or isinstance(key, bool):
            return f"one of its names as {_yaml(key)}"
        if values_too and (item is None or isinstance(item, bool)):
            return f"the value of {key} as {_yaml(item)}"
    return None


def _yaml(value: bool | None) -> str:
    return "null" if value is None else str(value).lower()


def _convert(kind: Any, value: Any) -> Any:
    if type(value) is kind:  # nearly always
        return value
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _convert(option, value)
            except ValueError:
                continue
        raise ValueError
    if kind is types.NoneType and value is None:
        return None
    if origin is Literal and value in args:
        return value
    if origin is list and isinstance(value, (list, tuple)):
        return [_convert(args[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        converted = {}
        for key, item in value.items():
            if isinstance(item, bool):  # cluster.sbatch.contiguous=true
                item = str(item).lower()
            converted[str(key)] = _convert(args[1], item)
        return converted
    if kind is bool and isinstance(value, bool):
        return value
    if (
        kind is int
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value % 1 == 0
    ):
        return int(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def describe(kind: Any) -> str:
    """A type in the user's terms."""
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is Literal:
        return " or ".join(str(option) for option in args)
    if origin is list:
        return f"a list ([a,b]) of {describe(args[0])}"
    if origin is dict:
        values = "groups of keys" if named_class(kind) else describe(args[1])
        return f"a mapping ({{key: value}}) to {values}"
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
    }
    return names.get(kind, str(kind))
