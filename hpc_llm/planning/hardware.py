"""GPUs that the planner knows: bf16 dense peak and memory."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.config.schema import ClusterConfig

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU model."""

    peak_tflops: float  # bf16 tensor cores, dense (not the sparse figure)
    memory_gib: float  # what the driver reports, a little below the name on the box


def gpu_of(cluster: ClusterConfig) -> Gpu | None:
    """The GPU of the table, but with the cluster's own values; None if one is not known."""
    if cluster.gpu is None or cluster.device == "cpu":
        return None
    peak = cluster.gpu_peak_tflops
    memory = cluster.gpu_memory_gib
    if cluster.gpu in GPUS:
        known = GPUS[cluster.gpu]
        peak = peak or known.peak_tflops
        memory = memory or known.memory_gib
    if not peak or not memory:
        return None
    return Gpu(peak, memory)


# Peaks: NVIDIA's data sheets for A100 and H100/H200 SXM, dense. Earlier GPUs have no bf16 tensor
# cores.
GPUS = {
    "a100-40gb": Gpu(312.0, 39.4),
    "a100-80gb": Gpu(312.0, 79.1),
    "h100-80gb": Gpu(989.4, 79.1),
    "h200-141gb": Gpu(989.4, 139.8),
}
