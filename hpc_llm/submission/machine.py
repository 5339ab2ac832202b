"""What this machine gives to ranks that run here.

Its GPUs, as nvidia-smi names them, or its own memory.
"""

from __future__ import annotations

import dataclasses
import os

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.hardware import GIB, GPUS

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
# Boards of the same name that are slower than those whose peak the planner knows.
_OTHER_BOARDS = ("pcie", "nvl")
_SAME = 0.03  # by how much the driver's figure may differ from the table's


def as_here(config: RunConfig) -> tuple[RunConfig, int | None]:
    """`config` with what is left open settled for this machine, and the bytes that each rank has.

    Unchanged and None for a run that goes to a cluster, or whose cluster.gpu is given. InputError
    where ranks would share a GPU: NCCL refuses that only once all of them have started.
    """
    cluster = config.cluster
    if cluster.launcher != "local" or (cluster.gpu is not None and config.dry_run):
        return config, None
    gpus = [] if cluster.device == "cpu" else _gpus()
    if 0 < len(gpus) < cluster.gpus_per_node:
        raise InputError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}: a rank needs a GPU of its own, and "
            f"nvidia-smi shows {len(gpus)} here; set cluster.gpus_per_node={len(gpus)}, or "
            "cluster.device=cpu"
        )
    if cluster.gpu is not None:
        return config, None
    if gpus:
        name, memory = min(gpus, key=lambda gpu: gpu[1])
        here = dataclasses.replace(cluster, gpu=known(name, memory))
        return dataclasses.replace(config, cluster=here), memory
    if cluster.device == "cuda":
        return config, None  # it is for another machine, or the ranks will say that there is none
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = dataclasses.replace(cluster, device="cpu")
    return dataclasses.replace(config, cluster=here), total // max(1, cluster.gpus_per_node)


def known(name: str, memory: int) -> str | None:
    """The GPU's name in planning.hardware, by the driver's name and memory in bytes.

    None where it is not there.
    """
    if any(board in name.lower() for board in _OTHER_BOARDS):
        return None
    for key, gpu in GPUS.items():
        if key.partition("-")[0] in name.lower() and abs(memory / GIB / gpu.memory_gib - 1) < _SAME:
            return key
    return None


def _gpus() -> list[tuple[str, int]]:
    """Name and memory in bytes of each GPU here; none where there is no driver."""
    import subprocess  # a plan for a cluster starts no process

    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in done.stdout.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            gpus.append((name.strip(), int(mebibytes) * 2**20))
    return gpus
