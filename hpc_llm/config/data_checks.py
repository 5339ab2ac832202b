"""Rules on where text comes from and how it is read; order_checks has those on its order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from hpc_llm.config.building import default_of, default_value
from hpc_llm.config.schema import DataConfig, ReadingConfig

_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
)  # of a source; a part of its shards' file names


def problems(data: DataConfig) -> Iterator[str]:
    """Everything wrong with `data` that can be seen from it alone, one sentence each."""
    yield from _names(data)
    yield from _lengths(data, "data")
    for name, source in data.sources.items():
        yield from _lengths(source, f"data.sources.{name}")
    yield from _without_effect(data)


def _names(data: DataConfig) -> Iterator[str]:
    if data.name != "stdlib" and data.source is None and not data.sources:
        yield "data.source: missing; give a folder or a file of text with data.source=PATH"
    for key, name in (("data.name", data.name), *(("data.sources", name) for name in data.sources)):
        if not _NAME.fullmatch(name):
            yield (
                f"{key}={name!r}: up to 100 letters, digits, '.', '_' and '-' are expected, "
                "since it names files"
            )


def _lengths(reading: ReadingConfig, prefix: str) -> Iterator[str]:
    least = reading.min_chars
    most = reading.max_chars
    for key, value in (("min_chars", least), ("max_chars", most)):
        if value is not None and value < 1:
            yield f"{prefix}.{key}={value}: a number above 0 is expected, or null"
    if least is not None and most is not None and least > most:
        yield f"{prefix}.min_chars={least}: at most {prefix}.max_chars={most} is expected"


def _without_effect(data: DataConfig) -> Iterator[str]:
    if data.name == "stdlib" and data.source is not None:
        yield (
            f"data.source={data.source}: data=stdlib has its own source; use data=files "
            "data.source=…"
        )
    if data.name == "stdlib" and data.sources:
        yield "data.sources: data=stdlib has its own source; use data=files"
    if data.eos_token is not None and data.tokenizer is None:
        yield f"data.eos_token={data.eos_token}: has an effect with data.tokenizer=PATH alone"
    sample_mb = default_value(DataConfig, "tokenizer_sample_mb")
    if data.tokenizer is not None and data.tokenizer_sample_mb != sample_mb:
        yield (
            f"data.tokenizer_sample_mb={data.tokenizer_sample_mb}: has no effect with "
            f"data.tokenizer={data.tokenizer}, which is trained already"
        )
    if not data.sources and data.name != "stdlib":
        return
    why = (
        "each of data.sources has its own" if data.sources else "data=stdlib is read in its own way"
    )
    for item in dataclasses.fields(ReadingConfig):
        if (value := getattr(data, item.name)) != default_of(item):
            yield f"data.{item.name}={value}: has no effect, {why}"
