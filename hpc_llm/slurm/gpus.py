"""How a site wants to be asked for GPUs: `cluster.gpu_request`. Standard library only."""

from __future__ import annotations

from hpc_llm.config.schema import ClusterConfig


def gpu_option(cluster: ClusterConfig, gpus_per_node: int) -> tuple[str, str] | None:
    """Name and value of the option, of sbatch and of srun; None where nothing is asked for.

    A type, as in `gres:a100` and `gpus-per-node:h100`, is Slurm's own word (gres.conf), not
    cluster.gpu.
    """
    dialect, _, kind = cluster.gpu_request.partition(":")
    number = f"{kind}:{gpus_per_node}" if kind else str(gpus_per_node)
    if dialect == "gpus-per-node":
        return "gpus-per-node", number
    if dialect == "gres":
        return "gres", f"gpu:{number}"
    return None
