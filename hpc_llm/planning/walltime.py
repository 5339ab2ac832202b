"""Time and GPU-hours at a stated share of the machine's peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_llm.config.schema import ClusterConfig


@dataclass(frozen=True)
class Walltime:
    """Training time alone: no queue, no restarts. All None where peak or MFU is unknown."""

    tokens_per_second: float | None = None  # over all ranks
    wall_hours: float | None = None
    gpu_hours: float | None = None
    jobs: int | None = None  # Slurm time limits; None without a time limit


def walltime(cluster: ClusterConfig, peak_tflops: float | None, flops_per_token: float, tokens: int) -> Walltime:
    """tokens/s = W · peak · MFU ÷ FLOPs per token, with MFU = cluster.expected_mfu of the bf16 dense peak."""
    if peak_tflops is None or cluster.expected_mfu is None:
        return Walltime()
    tokens_per_second = cluster.world_size * peak_tflops * 1e12 * cluster.expected_mfu / flops_per_token
    seconds = tokens / tokens_per_second
    return Walltime(
        tokens_per_second=tokens_per_second,
        wall_hours=seconds / 3600,
        gpu_hours=seconds / 3600 * cluster.world_size,
        jobs=jobs(cluster, seconds),
    )


def jobs(cluster: ClusterConfig, seconds: float) -> int | None:
    """Slurm time limits that `seconds` of training fill, each shortened by the lead in which the run saves."""
    if cluster.time_min is None:
        return None
    return math.ceil(seconds / (cluster.time_min * 60 - cluster.signal_lead_s))
