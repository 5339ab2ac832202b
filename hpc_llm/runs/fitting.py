"""Micro-batches that were too much for a GPU, remembered below the root: the next run alike does not try them again.

One file for each model, GPU and way to run a step. Standard library only: the supervisor writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import write_json

_OF_TRAIN = ("seq_len", "precision", "loss_chunk", "compile")
_OF_CLUSTER = ("gpu", "device", "nodes", "gpus_per_node")


@dataclass(frozen=True)
class Limit:
    """The most sequences per rank and pass that are tried, and the run that had to halve a larger number."""

    micro_batch: int
    run: str


def note(run: RunLayout, config: Mapping[str, Any], plan: Mapping[str, Any], micro_batch: int) -> None:
    """No more than `micro_batch` for runs like this one; without effect where the root cannot be written."""
    path = _file(RootLayout.of(run), config, plan["attention"], plan["zero_stage"], plan["activation_checkpointing"])
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"micro_batch": micro_batch, "run": run.name})


def limit(
    root: RootLayout, config: Mapping[str, Any], attention: str, zero_stage: int, activation_checkpointing: bool
) -> Limit | None:
    """What is remembered of runs with this (plain) configuration, this backend of attention and this way to run."""
    try:
        plain = json.loads(_file(root, config, attention, zero_stage, activation_checkpointing).read_text())
        return Limit(max(1, int(plain["micro_batch"])), str(plain["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(
    root: RootLayout, config: Mapping[str, Any], attention: str, zero_stage: int, activation_checkpointing: bool
) -> Path:
    """Everything that a step's memory depends on makes the name."""
    model, train, cluster = config["model"], config["train"], config["cluster"]
    facts = [
        {key: value for key, value in model.items() if key != "name"},
        *({key: section[key] for key in keys} for section, keys in ((train, _OF_TRAIN), (cluster, _OF_CLUSTER))),
        *(config["optim"]["name"], attention, zero_stage, activation_checkpointing),
    ]
    return root.fitting / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}.json"
