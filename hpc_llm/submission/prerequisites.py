"""What runs need before they are frozen: data that prepares itself, and compiled operators."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import MANIFEST
from hpc_llm.data.recipe import directory_for
from hpc_llm.preparation import progress
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.storage import operators


def prepare(runs: Sequence[PlannedRun]) -> None:
    """Data that prepares itself, and operators for CPUs: once for all runs that share them."""
    data: dict[tuple[Path, str, int], RunConfig] = {}
    optimizers: dict[str, RunConfig] = {}
    for run in runs:
        config = run.config
        data[directory_for(config), config.data.packing, config.train.seq_len] = config
        if config.cluster.device == "cpu":
            optimizers[config.optim.name] = config
    for config in data.values():
        prepare_data(config)
    for config in optimizers.values():
        build(config)


def prepare_data(config: RunConfig) -> None:
    """Data that prepares itself; other data is packed if the run wants that and nobody has yet."""
    directory = directory_for(config)
    if config.data.name == "stdlib":
        progress.prepare_shown(config, directory)
    elif (directory / MANIFEST).exists():
        progress.pack_shown(config, directory)


def build(config: RunConfig) -> None:
    """Compile what the optimizer needs, once.

    In a process of its own: this one never imports torch.
    """
    operator = operators.needed(config.optim.name, "cpu")
    if operator is None:
        return
    device = config.cluster.device
    if device == "cpu" and operators.library(operator, operators.cpu_architecture()).exists():
        return
    argv = [sys.executable, "-m", "hpc_llm.build", "--quiet", config.optim.name, device]
    subprocess.run(argv, check=False)
