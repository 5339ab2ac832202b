"""This rank's device and its group of ranks. Imported before DeepSpeed, which must be told the device."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist

from hpc_llm.config.errors import InputError
from hpc_llm.slurm.environment import RankEnvironment


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """This rank's device (`cluster.device`), told to DeepSpeed too, which asks only while it is imported."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "cluster.device=cuda: torch sees no GPU here; use cluster.device=cpu, or a torch built for CUDA"
        )
    kind = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    os.environ["DS_ACCELERATOR"] = kind
    if kind == "cpu":
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()  # one GPU where the launcher shows each rank its own
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextlib.contextmanager
def process_group(place: RankEnvironment, device: torch.device) -> Iterator[None]:
    """torch.distributed over all ranks: NCCL between GPUs, Gloo between CPUs."""
    if place.master_port == 0:
        with socket.socket() as probe:
            probe.bind((place.master_addr, 0))
            place = RankEnvironment(**{**vars(place), "master_port": probe.getsockname()[1]})
    place.export(os.environ)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=place.rank, world_size=place.world_size)
    yield
    dist.destroy_process_group()


def broadcast(value: int) -> int:
    """Rank 0's `value` on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
