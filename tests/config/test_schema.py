"""Plain data → frozen dataclasses: every mistake at once, and JSON loses nothing."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.building import build, completed, describe, field_types, section_class, to_dict
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.schema import RunConfig
from tests.configs import make_config

WRONG = [["nested"]]  # a value that no key of the schema takes


def anything_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that an annotation of the schema allows."""
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        fields = {
            name: anything_of(hint) for name, hint in field_types(typing.cast(type, kind)).items()
        }
        return st.builds(typing.cast(type, kind), **fields)
    if origin in (Union, types.UnionType):
        return st.one_of(*(anything_of(option) for option in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is list:
        return st.lists(anything_of(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), anything_of(args[1]), max_size=3)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        types.NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=10).filter(lambda text: text != "???"),
    }
    return plain[kind]


def leaves(cls: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted key of every value in the schema."""
    for name, hint in field_types(cls).items():
        section = section_class(hint)
        yield from leaves(section, f"{prefix}{name}.") if section else [prefix + name]


def sections(cls: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted prefix of every group of keys, the top level first."""
    yield prefix
    for name, hint in field_types(cls).items():
        if section := section_class(hint):
            yield from sections(section, f"{prefix}{name}.")


def required(cls: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted key of every value without a default."""
    for field in dataclasses.fields(cls):
        section = section_class(field_types(cls)[field.name])
        if section:
            yield from required(section, f"{prefix}{field.name}.")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield prefix + field.name


def good() -> dict[str, Any]:
    """Plain data of the default configuration, to spoil."""
    return deepcopy(to_dict(make_config()))


def section_of(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *path, last = key.split(".")
    for part in path:
        data[part] = data[part] or {}  # a section that is null by default
        data = data[part]
    return data, last


def problems(data: Any) -> list[str]:
    with pytest.raises(InputError) as raised:
        build(RunConfig, data)
    return raised.value.problems


@settings(max_examples=50, deadline=None)
@given(anything_of(RunConfig))
def test_any_configuration_survives_json(config: RunConfig) -> None:
    assert build(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("key", list(leaves()))
def test_a_value_of_the_wrong_type_is_named_with_what_is_allowed(key: str) -> None:
    data = good()
    section, last = section_of(data, key)
    section[last] = WRONG
    (line,) = problems(data)
    assert line.startswith(f"{key}={WRONG!r}: ")
    assert line.endswith(" is expected")


def test_all_mistakes_are_reported_at_once() -> None:
    data = good()
    expected = {f"{key}={WRONG!r}" for key in leaves() if key not in set(required())}
    for key in leaves():
        section, last = section_of(data, key)
        section[last] = WRONG
    for key in required():
        section, last = section_of(data, key)
        del section[last]
    for prefix in sections():
        section_of(data, prefix + "nonsense")[0]["nonsense"] = 1
    found = problems(data)
    assert {line.partition(": ")[0] for line in found} == (
        expected | set(required()) | {f"{prefix}nonsense" for prefix in sections()}
    )
    assert len(found) == len(expected) + len(list(required())) + len(list(sections()))


@pytest.mark.parametrize("key", list(required()))
def test_a_missing_value_is_asked_for(key: str) -> None:
    data = good()
    section, last = section_of(data, key)
    del section[last]
    assert problems(data) == [f"{key}: missing; give it as {key}=…"]
    section[last] = "???"
    assert problems(data) == [f"{key}: missing; give it as {key}=…"]


@pytest.mark.parametrize("prefix", list(sections())[1:])
def test_a_value_where_a_group_belongs_is_refused(prefix: str) -> None:
    data = good()
    section, last = section_of(data, prefix.rstrip("."))
    section[last] = 3
    assert problems(data) == [f"{prefix.rstrip('.')}=3: a group of keys is expected here"]


def test_what_an_older_version_did_not_know_has_its_default_and_what_it_knew_stays() -> None:
    whole = to_dict(make_config("+data.sources.wiki.path=wiki"))
    older = {**deepcopy(whole), "gone": 1}
    del (
        older["halving"],
        older["model"]["z_loss"],
        older["optim"]["betas"],
        older["data"]["sources"]["wiki"]["weight"],
    )
    del older["model"]["d_model"]  # it has no default
    expected = {**deepcopy(whole), "gone": 1}
    del expected["model"]["d_model"]
    assert completed(RunConfig, older) == expected
    assert completed(RunConfig, whole) == whole


def test_an_unknown_key_gets_its_nearest_spelling_first() -> None:
    data = good()
    data["train"]["seqlen"] = 128
    assert problems(data)[0].startswith("train.seqlen: unknown key; allowed here: seq_len, ")


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("train.seq_len", 128.0, 128),  # YAML reads 1e3 as a float
        ("train.micro_batch", "auto", "auto"),
        ("optim.lr", 1, 1.0),
        ("run.name", 17, "17"),  # a run may be called 17
        ("cluster.mem", 0, "0"),
        ("cluster.exports", {"A": 1}, {"A": "1"}),
        ("optim.betas", (0, 1), [0.0, 1.0]),
        ("trackers.tensorboard", None, None),
    ],
)
def test_values_that_mean_the_same_are_taken(key: str, value: Any, kept: Any) -> None:
    data = good()
    section, last = section_of(data, key)
    section[last] = value
    found, last = section_of(to_dict(build(RunConfig, data)), key)
    assert found[last] == kept
    assert type(found[last]) is type(kept)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.seq_len", 128.5),
        ("train.seq_len", True),
        ("train.seq_len", float("inf")),
        ("train.seq_len", float("nan")),
        ("train.seq_len", "128"),
        ("train.seq_len", None),
        ("train.micro_batch", "automatic"),
        ("optim.lr", "1e-3"),
        ("optim.betas", 0.9),
        ("dry_run", 1),
        ("dry_run", "true"),
        ("run.name", True),
        ("train.precision", "fp16"),
        ("cluster.exports", ["A"]),
    ],
)
def test_values_that_mean_something_else_are_not_bent(key: str, value: Any) -> None:
    data = good()
    section, last = section_of(data, key)
    section[last] = value
    assert [line.partition(": ")[0] for line in problems(data)] == [f"{key}={value!r}"]


def test_a_number_beyond_floating_point_is_refused() -> None:
    data = good()
    data["optim"]["lr"] = 10**400
    assert problems(data)[0].endswith("000: a number is expected")


@settings(deadline=None)
@given(st.integers(min_value=10**15, max_value=10**500))
def test_whole_numbers_of_any_size_stay_exact(number: int) -> None:
    data = good()
    data["run"]["seed"] = number
    assert build(RunConfig, data).run.seed == number


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | Literal["auto"], "a whole number or auto"),
        (float | None, "a number or null"),
        (Literal["bf16", "fp32"], "bf16 or fp32"),
        (list[str], "a list ([a,b]) of text"),
        (dict[str, str], "a mapping ({key: value}) to text"),
        (bool, "true or false"),
    ],
)
def test_types_are_described_in_a_users_words(kind: Any, words: str) -> None:
    assert describe(kind) == words


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True), st.data())
def test_a_word_itself_is_always_its_nearest_spelling(
    allowed: list[str], data: st.DataObject
) -> None:
    word = data.draw(st.sampled_from(allowed))
    shown = nearest(word, allowed)
    assert shown.startswith(word)
    assert ("in all)" in shown) == (len(allowed) > 12)


def test_a_mistake_in_a_named_group_is_called_by_its_full_name() -> None:
    plain = good()
    plain["data"]["sources"] = {
        "c4": {"weight": "much"},
        "books": {"path": "books", "wieght": 1},
        "code": "a/b",
    }
    with pytest.raises(InputError) as error:
        build(RunConfig, plain)
    assert error.value.problems == [
        "data.sources.c4.path: missing; give it as data.sources.c4.path=…",
        "data.sources.c4.weight='much': a number is expected",
        "data.sources.books.wieght: unknown key; allowed here: weight, id_field, max_chars, "
        "max_epochs, min_chars, path, split, suffixes, text_field, where",
        "data.sources.code='a/b': a group of keys is expected here",
    ]


def test_named_groups_survive_json() -> None:
    plain = good()
    plain["data"]["sources"] = {"c4": {"path": "c4", "weight": 3, "where": {"lang": "en"}}}
    built = build(RunConfig, plain)
    assert built.data.sources["c4"].weight == 3.0
    assert build(RunConfig, to_dict(built)) == built
