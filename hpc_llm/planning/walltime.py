"""Time and GPU-hours: as measured in a comparable run, or at a fraction of the machine's peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.planning.experience import Speed

NOTICE_STEPS = 3
NOTICE_MARGIN_S = 60.0  # for the ranks to end, the supervisor, and differing clocks of nodes
LEAST_LEAD_S = 300  # a plan's times are estimates


@dataclass(frozen=True)
class Walltime:
    """Pure training time: no queue, no restarts. All None if nothing is known about the machine."""

    tokens_per_second: float | None = None  # over all ranks
    mfu: float | None = None  # None if the peak is unknown
    wall_hours: float | None = None
    gpu_hours: float | None = None  # of all GPUs that the job holds


def walltime(
    cluster: ClusterConfig,
    peak_tflops: float | None,
    flops_per_token: float,
    tokens: int,
    measured: Speed | None = None,
) -> Walltime:
    """Time of a run at a measured speed, which is used as it is for each rank.

    Without one tokens/s = W · peak · MFU ÷ FLOPs per token; MFU is then cluster.expected_mfu, of
    the bf16 dense peak.
    """
    mfu = cluster.expected_mfu
    peak = None
    if peak_tflops is not None:
        peak = cluster.world_size * peak_tflops * 1e12
    if measured is not None:
        tokens_per_second = measured.tokens_per_second / measured.world_size * cluster.world_size
        mfu = None
        if peak is not None:
            mfu = tokens_per_second * flops_per_token / peak
    elif peak is not None and mfu is not None:
        tokens_per_second = peak * mfu / flops_per_token
    else:
        return Walltime(mfu=mfu)
    seconds = tokens / tokens_per_second
    return Walltime(
        tokens_per_second=tokens_per_second,
        mfu=mfu,
        wall_hours=seconds / 3600,
        gpu_hours=seconds / 3600 * cluster.held_gpus,
    )


def notice_s(step_s: float, save_s: float, evaluation_s: float = 0.0) -> float:
    """Seconds from Slurm's signal until a run has saved and exited, in the worst case.

    The signal arrives during a step, the ranks tell each other with the next, and read it with the
    one after, since numbers lag a step (training.loop). An evaluation and a save may be due in
    between; the last save comes on top.
    """
    return NOTICE_STEPS * step_s + evaluation_s + 2 * save_s + NOTICE_MARGIN_S


def lead_s(time_min: int, needed_s: float) -> int:
    """Seconds of notice that cluster.signal_lead_s=auto requests from Slurm.

    What is needed, in whole minutes, and no less than five minutes or half of the time limit,
    whichever is less.
    """
    return max(math.ceil(needed_s / 60) * 60, min(LEAST_LEAD_S, time_min * 30))


def jobs(seconds: float, time_min: int, lead_s: int) -> int:
    """Slurm time limits that `seconds` of training take.

    Each is shortened by the lead in which the run saves.
    """
    return math.ceil(seconds / (time_min * 60 - lead_s))
