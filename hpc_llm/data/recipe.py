"""The settings that change the bytes of prepared data: two runs with the same recipe share it.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig, ReadingConfig, RunConfig
from hpc_llm.data.manifest import FORMAT_VERSION, Manifest


def recipe_of(config: DataConfig) -> dict[str, Any]:
    """The recipe. Workers, out, weights and the limit on rejects are not in it."""
    trained = config.tokenizer is None
    return {
        "format": FORMAT_VERSION,
        "name": config.name,
        **_sources(config),
        "deduplicate": config.deduplicate,
        "tokenizer": _content(config.tokenizer),
        "eos_token": config.eos_token,
        "vocab_size": config.vocab_size,
        "tokenizer_sample_mb": config.tokenizer_sample_mb if trained else None,
        "heldout_fraction": config.heldout_fraction,
    }


def directory_for(config: RunConfig) -> Path:
    """Folder of the shards of a run: data.out, or one below run.root named by the recipe."""
    if config.data.out is not None:
        return Path(config.data.out).expanduser()
    settings = {}
    for key, value in recipe_of(config.data).items():
        if value != _unless_given(key):
            settings[key] = value
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path(config.run.root).expanduser() / ".data" / f"{config.data.name}-{digest[:12]}"


def check_recipe(manifest: Manifest, config: DataConfig, directory: Path) -> None:
    """InputError that names every setting in which prepared data differ from what is asked for."""
    problems = []
    for key, wanted in recipe_of(config).items():
        if wanted != manifest.recipe.get(key, _unless_given(key)):
            problems.append(
                f"data.{key}={wanted}: {directory} was prepared with {manifest.recipe.get(key)}; "
                "choose another data.out, or remove that folder"
            )
    if problems:
        raise InputError(problems)


def _sources(config: DataConfig) -> dict[str, Any]:
    if config.name == "stdlib":
        return {"source": f"Python {platform.python_version()}"}
    if not config.sources:
        return {"source": _absolute(config.source), **_reading(config, "")}
    base = Path(config.source or ".").expanduser()
    settings: dict[str, Any] = {}
    for name, source in sorted(config.sources.items()):
        key = f"sources.{name}."
        settings[f"{key}path"] = _absolute(str(base / Path(source.path).expanduser()))
        settings |= _reading(source, key)
    return settings


def _reading(config: ReadingConfig, prefix: str) -> dict[str, Any]:
    settings = {}
    for item in dataclasses.fields(ReadingConfig):
        value = getattr(config, item.name)
        settings[prefix + item.name] = sorted(value) if item.name == "suffixes" else value
    return settings


def _unless_given(key: str) -> Any:
    """What a setting of reading is by default; '' for other settings.

    So a setting that a later version adds changes no recipe in which it has its default.
    """
    return _reading(ReadingConfig(), "").get(key.rpartition(".")[2], "")


def _absolute(path: str | None) -> str | None:
    if path is None:
        return None
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 – resolve() would follow links


def _content(path: str | None) -> str | None:
    """Hash of a tokenizer's content: where the file lies does not change the bytes.

    The path itself where it cannot be read.
    """
    if path is None:
        return None
    try:
        return "sha256:" + hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError:
        return _absolute(path)
