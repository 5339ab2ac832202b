"""Everything that is looked at before a run is frozen: all mistakes at once, then the data, then the plan."""

from __future__ import annotations

import os
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import manifest
from hpc_llm.planning.plan import DataFacts, RunPlan, make_plan
from hpc_llm.runs import preflight


def examine(config: RunConfig) -> RunPlan:
    """The plan of `config` as far as it is known before its data is prepared; InputError with all that is wrong."""
    problems: list[str] = []
    data, plan = None, None
    if not config.dry_run:
        problems += preflight.problems(config)
    try:
        data = known_data(config)
    except InputError as error:
        problems += error.problems
    try:
        plan = make_plan(config, data, memory_available=_host_memory(config))
    except InputError as error:
        problems += error.problems
    if plan is not None and not config.dry_run and not problems:
        problems += preflight.room_problems(config, plan)
    if problems or plan is None:
        raise InputError(problems)
    return plan


def known_data(config: RunConfig) -> DataFacts | None:
    """Facts of the run's data where it is prepared; None where the run may prepare it, or for a dry run."""
    directory = manifest.directory_for(config)
    if (directory / manifest.MANIFEST).exists():
        manifest.check_recipe(manifest.read_manifest(directory), config.data, directory)
        return manifest.facts(directory)
    if config.data.name == "stdlib":
        return None
    source = config.data.source
    if source is not None and not Path(source).expanduser().exists():
        raise InputError(f"data.source={source}: no such file or folder")
    if config.dry_run:
        return None
    raise InputError(
        f"data={config.data.name}: {source} is not prepared for this tokenizer; type: "
        f"python -m hpc_llm.prepare data={config.data.name} data.source={source} (and the keys given here)"
    )


def _host_memory(config: RunConfig) -> int | None:
    """Bytes per rank of this machine, for ranks on its CPUs; None where cluster.gpu or nobody knows."""
    if config.cluster.launcher != "local" or config.cluster.gpu is not None or Path("/dev/nvidiactl").exists():
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // max(1, config.cluster.gpus_per_node)
