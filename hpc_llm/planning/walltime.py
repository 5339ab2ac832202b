"""Time and GPU-hours: as a run alike was, or at a stated share of the machine's peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.planning.experience import Speed


@dataclass(frozen=True)
class Walltime:
    """Training time alone: no queue, no restarts. All None where nothing is known of the machine."""

    tokens_per_second: float | None = None  # over all ranks
    mfu: float | None = None  # None where the peak is unknown
    wall_hours: float | None = None
    gpu_hours: float | None = None
    jobs: int | None = None  # Slurm time limits; None without a time limit


def walltime(
    cluster: ClusterConfig,
    peak_tflops: float | None,
    flops_per_token: float,
    tokens: int,
    measured: Speed | None = None,
) -> Walltime:
    """A measured speed counts for each rank as it is; without one tokens/s = W · peak · MFU ÷ FLOPs per token.

    MFU is then cluster.expected_mfu, of the bf16 dense peak.
    """
    mfu, peak = cluster.expected_mfu, None if peak_tflops is None else cluster.world_size * peak_tflops * 1e12
    if measured is not None:
        tokens_per_second = measured.tokens_per_second / measured.world_size * cluster.world_size
        mfu = None if peak is None else tokens_per_second * flops_per_token / peak
    elif peak is not None and mfu is not None:
        tokens_per_second = peak * mfu / flops_per_token
    else:
        return Walltime(mfu=mfu)
    seconds = tokens / tokens_per_second
    return Walltime(
        tokens_per_second=tokens_per_second,
        mfu=mfu,
        wall_hours=seconds / 3600,
        gpu_hours=seconds / 3600 * cluster.world_size,
        jobs=jobs(cluster, seconds),
    )


def jobs(cluster: ClusterConfig, seconds: float) -> int | None:
    """Slurm time limits that `seconds` of training fill, each shortened by the lead in which the run saves."""
    if cluster.time_min is None:
        return None
    return math.ceil(seconds / (cluster.time_min * 60 - cluster.signal_lead_s))
