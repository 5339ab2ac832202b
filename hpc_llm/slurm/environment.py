"""This process's rank, from torchrun's variables, from Slurm's, or as the only one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass

from hpc_llm.config.errors import InputError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankEnvironment:
    """One rank's place."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int  # 0 if this is the only rank, which may take any port

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Write the variables that torch.distributed and DeepSpeed read."""
        environment["RANK"] = str(self.rank)
        environment["LOCAL_RANK"] = str(self.local_rank)
        environment["WORLD_SIZE"] = str(self.world_size)
        environment["LOCAL_WORLD_SIZE"] = str(self.local_world_size)
        environment["MASTER_ADDR"] = self.master_addr
        environment["MASTER_PORT"] = str(self.master_port)


def read(environment: Mapping[str, str]) -> RankEnvironment:
    """The place that `environment` describes: by torchrun, else by srun, else a single rank.

    InputError if variables are missing, as when srun started several tasks without saying where
    rank 0 listens.
    """
    if "RANK" in environment:
        return _of_torchrun(environment)
    num_tasks = _number(environment, "SLURM_NTASKS", 1)
    if num_tasks > 1 and "SLURM_PROCID" in environment:
        return _of_srun(environment, num_tasks)
    return RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0)


def _of_torchrun(environment: Mapping[str, str]) -> RankEnvironment:
    if missing := _missing(environment, _TORCHRUN):
        raise InputError(
            f"{missing}: missing beside RANK; start by torchrun, or unset RANK for a single rank"
        )
    return RankEnvironment(
        rank=_number(environment, "RANK"),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        world_size=_number(environment, "WORLD_SIZE"),
        local_world_size=_number(environment, "LOCAL_WORLD_SIZE", 1),
        master_addr=environment["MASTER_ADDR"],
        master_port=_number(environment, "MASTER_PORT"),
    )


def _of_srun(environment: Mapping[str, str], num_tasks: int) -> RankEnvironment:
    if missing := _missing(environment, _SRUN):
        raise InputError(
            f"{missing}: missing, and srun started {num_tasks} tasks; export MASTER_ADDR (the "
            "first node) and MASTER_PORT (a free port there) before srun"
        )
    return RankEnvironment(
        rank=_number(environment, "SLURM_PROCID"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        world_size=num_tasks,
        local_world_size=num_tasks // _number(environment, "SLURM_NNODES", 1),
        master_addr=environment["MASTER_ADDR"],
        master_port=_number(environment, "MASTER_PORT"),
    )


def _missing(environment: Mapping[str, str], names: Iterable[str]) -> str:
    return ", ".join(name for name in names if name not in environment)


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    value = environment.get(name, str(default))
    if not value.isdecimal():
        raise InputError(
            f"{name}={value!r}: a whole number is expected, as torchrun or srun sets it"
        )
    return int(value)
