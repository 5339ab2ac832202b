"""Which run a configuration is: what decides what it learns, its name, and where it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_llm.config import building
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs.layout import RunLayout

# Keys that change neither the samples nor the mathematics: a run may go on with others.
_MACHINE_KEYS = (
    "run.name",
    "run.sweep",
    "run.root",
    "run.group",
    "run.max_gpu_hours",
    "run.depends_on",
    "cluster",
    "checkpoint",
    "recovery",
    "trackers",
    "halving",
    "search",
    "data.out",
    "data.workers",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.eval_every",
    "train.attention",
    "train.loss_chunk",
    "train.compile",
    "train.zero_stage",
    "dry_run",
    "test_only",
    "local",
    "json",
)


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of the configuration that decides what is learned."""
    plain = building.to_dict(config)
    _remove_machine_keys(plain)
    return plain


def digest_of(configs: Sequence[RunConfig]) -> str:
    """Eight characters that the same words always give, whatever keys a later version adds."""
    identities = []
    for config in configs:
        plain = building.chosen(config)
        _remove_machine_keys(plain)
        identities.append({section: keys for section, keys in plain.items() if keys})
    text = json.dumps(identities, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _remove_machine_keys(plain: dict[str, Any]) -> None:
    """Change `plain`, a configuration as a tree of keys, in place."""
    for key in _MACHINE_KEYS:
        *path, last = key.split(".")
        section = plain
        for part in path:
            section = section.get(part, {})
        section.pop(last, None)


def run_name(config: RunConfig) -> str:
    """`run.name`, or a name that the same configuration always gets."""
    if config.run.name is not None:
        return config.run.name
    return f"{config.model.name}-{config.data.name}-{digest_of([config])}"


def root_of(config: RunConfig) -> Path:
    """The folder of all runs, absolute."""
    return Path(config.run.root).expanduser().absolute()


def layout_for(config: RunConfig) -> RunLayout:
    """Where this configuration's run lies, or would lie.

    That is <root>/<name>, in a sweep <root>/<sweep>/<name>.
    """
    return RunLayout(root_of(config) / (config.run.sweep or "") / run_name(config))
