"""This rank's device and its group of ranks.

Imported before DeepSpeed, which must be told the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from hpc_llm.config.errors import InputError
from hpc_llm.runs import orders
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training.rendezvous import open_store

_WATCHED = timedelta(days=7)  # longer than any silence that a supervisor lets pass
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4  # mallopt(3)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """This rank's device (`cluster.device`).

    Also set for DeepSpeed, which asks only while it is imported.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "cluster.device=cuda: torch sees no GPU here; use cluster.device=cpu, or a torch "
            "built for CUDA"
        )
    kind = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    os.environ["DS_ACCELERATOR"] = kind
    if kind == "cpu":
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus > 1:
        raise InputError(
            f"cluster.gpus_per_node: rank {local_rank} of this node has no GPU of its own, torch "
            f"sees {num_gpus} here; set cluster.gpus_per_node={num_gpus} (and look at "
            "CUDA_VISIBLE_DEVICES)"
        )
    index = local_rank % num_gpus  # a single GPU if the launcher shows each rank only its own
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def keep_memory(device: torch.device) -> None:
    """When training on a CPU, make glibc keep freed memory instead of returning it.

    The buffers of every step otherwise come as fresh pages, some 90,000 faults a step. Set through
    the environment, not yet through this call, it took a bare loop from 499 to 321 ms, in two runs
    one after the other (mpt-tiny, bf16, 2 threads; benchmarks/training.md). Without glibc, and
    under tcmalloc (training.allocator), this does nothing. Before glibc 2.38 an aligned block does
    not always fit where one of its size was freed: the heap then grows by it, in fresh pages.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def process_group(
    place: RankEnvironment, device: torch.device, patience_s: float = 1800.0
) -> Iterator[None]:
    """torch.distributed over all ranks: NCCL between GPUs, Gloo between CPUs.

    patience_s: how long ranks wait for one of them where no supervisor watches them.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    # All wait while rank 0 reshapes or publishes a checkpoint; torch's NCCL would abort them after
    # 600 s, as it still does in the group that DeepSpeed makes for gradients and weights. How long
    # a silence is a hang depends on what they do and usually take for it, which their supervisor
    # knows.
    name = orders.read(os.environ).rendezvous
    if name is None:
        timeout = timedelta(seconds=patience_s)
        store, place = open_store(place, name, patience_s)
    else:
        timeout = _WATCHED
        store, place = open_store(place, name)
    place.export(os.environ)
    dist.init_process_group(
        backend, rank=place.rank, world_size=place.world_size, store=store, timeout=timeout
    )
    yield
    dist.destroy_process_group()


T = TypeVar("T")


def broadcast(value: T) -> T:
    """Rank 0's `value` on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
