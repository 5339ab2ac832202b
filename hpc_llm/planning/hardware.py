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
    """The GPU from the table, with values from the cluster config taking precedence; None if either
    is not known.
    """
    if cluster.gpu is None or cluster.device == "cpu":
        return None
    known = GPUS.get(cluster.gpu)
    peak = cluster.gpu_peak_tflops or (known and known.peak_tflops)
    memory = cluster.gpu_memory_gib or (known and known.memory_gib)
    return Gpu(peak, memory) if peak and memory else None


# Peaks: NVIDIA's data sheets for A100 and H100/H200 SXM, dense. Earlier GPUs have no bf16 tensor
# cores.
GPUS = {
    "a100-40gb": Gpu(312.0, 39.4),
    "a100-80gb": Gpu(312.0, 79.1),
    "h100-80gb": Gpu(989.4, 79.1),
    "h200-141gb": Gpu(989.4, 139.8),
}
