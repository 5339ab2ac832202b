"""Who am I among the ranks: from torchrun's variables, from Slurm's, or alone."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankEnvironment:
    """One rank's place."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int  # 0 where this rank is alone and may take any

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Write the variables that torch.distributed and DeepSpeed read."""
        environment["RANK"] = str(self.rank)
        environment["LOCAL_RANK"] = str(self.local_rank)
        environment["WORLD_SIZE"] = str(self.world_size)
        environment["LOCAL_WORLD_SIZE"] = str(self.local_world_size)
        environment["MASTER_ADDR"] = self.master_addr
        environment["MASTER_PORT"] = str(self.master_port)


def read(environment: Mapping[str, str]) -> RankEnvironment:
    """The place that `environment` describes: RANK and its kin first, then SLURM_*, else a single rank.

    ValueError if srun started several tasks and nobody said where rank 0 listens.
    """
    if "RANK" in environment:
        return RankEnvironment(
            int(environment["RANK"]),
            int(environment.get("LOCAL_RANK", "0")),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_WORLD_SIZE", "1")),
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
        )
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise ValueError("srun started several tasks without MASTER_ADDR and MASTER_PORT; export both before srun")
        return RankEnvironment(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_LOCALID"]),
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_NTASKS"]) // int(environment.get("SLURM_NNODES", "1")),
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
        )
    return RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0)
