"""Bytes per rank, part by part. What DeepSpeed holds was read in its 0.19.8 source (runtime/).

N is the number of parameters, W the number of ranks, s·b·d one layer's activation of `micro_batch` sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.config import attention
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.activations import activation_bytes, mask_elements
from hpc_llm.planning.batch import accumulation
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.parameters import COMPUTE_BYTES, FP32_BYTES, MOMENTS, parameter_count

USABLE_FRACTION = 0.92  # of a GPU's memory; the rest is fragmentation
CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context with its loaded kernels, cuBLAS workspace, NCCL channels
CPU_PROCESS_BYTES = int(
    0.12 * GIB
)  # what a process grows by over its imports, whatever it trains (benchmarks/memory.md)
CPU_HEAP = 0.15  # of activations and logits: glibc's heap, whose holes are kept (training.device), measured there too
BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's default reduce_bucket_size
LIVE_ELEMENTS = 1_000_000_000  # ZeRO-3's max_live_parameters and sub_group_size
# Cross-entropy from bf16 logits: log-probabilities, their gradient and the logits' gradient, each in fp32.
LOSS_BYTES = 3 * FP32_BYTES


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per rank."""

    weights: int
    gradients: int  # beside activations; with what the optimizer's step copies, as far as that is more than both
    optimizer: int
    activations: int
    logits: int
    overhead: int  # CUDA context, NCCL and DeepSpeed buckets; on a CPU the process and its heap
    host: int = 0  # host memory of an offloaded optimizer; not part of the total

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.overhead


def estimate(config: RunConfig, zero_stage: int, activation_checkpointing: bool, micro_batch: int) -> MemoryEstimate:
    """Peak of one rank: the start of backward, where all activations and the logits live, or the optimizer's step."""
    model, precision, world = config.model, config.train.precision, config.cluster.world_size
    offloaded = config.optim.offloaded
    on_cpu = config.cluster.device == "cpu"
    count = parameter_count(model)
    compute = COMPUTE_BYTES[precision]
    states = optimizer_bytes(count, world, zero_stage, precision, MOMENTS[config.optim.name])
    backend = attention.choose(config)
    sequence = activation_bytes(model, config.train.seq_len, compute, activation_checkpointing, backend, on_cpu)
    mask = mask_elements(config, backend, micro_batch) * compute
    tokens = micro_batch * config.train.seq_len
    loss = compute if config.train.compile else LOSS_BYTES  # compiled, the logits' gradient is all there is beside them
    if config.train.loss_chunk is None:
        logits = tokens * model.vocab_size * (compute + loss)
    else:  # one chunk's, and the fp32 gradient of the output's matrix, which waits for backward
        chunk = min(config.train.loss_chunk, tokens)
        logits = model.vocab_size * (chunk * (compute + loss) + model.d_model * (compute + FP32_BYTES))
    activations = micro_batch * sequence + mask
    several = accumulation(config.train.global_batch, world, micro_batch) > 1
    matrix = 0 if config.train.loss_chunk else model.vocab_size * model.d_model  # there it is among the logits
    backward, step = gradient_bytes(count, matrix, world, zero_stage, precision, offloaded, several)
    context = cpu_bytes(activations + logits) if on_cpu else CONTEXT_BYTES
    return MemoryEstimate(
        weights=weight_bytes(count, world, zero_stage, compute),
        gradients=max(backward, step - activations - logits),
        optimizer=0 if offloaded else states,
        activations=activations,
        logits=logits,
        overhead=context + bucket_bytes(count, world, zero_stage, precision, offloaded),
        host=states + FP32_BYTES * shard(count, world) if offloaded else 0,
    )


def cpu_bytes(passing: int) -> int:
    """What a process on a CPU takes beside tensors, of which `passing` bytes come and go in a step."""
    return CPU_PROCESS_BYTES + int(CPU_HEAP * passing)


def shard(count: int, world_size: int) -> int:
    """Elements of one rank's part."""
    return -(-count // world_size)


def weight_bytes(count: int, world_size: int, zero_stage: int, compute: int) -> int:
    """Weights in the compute dtype; ZeRO-3 keeps a part and gathers up to LIVE_ELEMENTS around the layer at work."""
    if zero_stage < 3:
        return compute * count
    return compute * (shard(count, world_size) + min(count, LIVE_ELEMENTS))


def gradient_bytes(
    count: int, largest: int, world_size: int, zero_stage: int, precision: str, offloaded: bool, several_passes: bool
) -> tuple[int, int]:
    """Gradients of the compute dtype and their fp32 accumulation: during backward, and from its end to the step.

    - fp32: one full gradient at stages 0 and 1, nothing apart from it.
    - bf16, stage 1 (BF16_Optimizer, immediate_grad_update): a full fp32 buffer, 4·N; a bf16 gradient goes as soon as it
      is added, of which the `largest` parameter's, the output matrix's, waits longest.
    - stage 2: a bf16 part and its fp32 accumulation, 6·N/W; then the flat copy for the step too, 10·N/W, when no
      activation lives any more. In fp32 passes add to the gradient of the first. Offloaded, fp32 is in RAM.
    - stage 3: a flat fp32 part; then the copy of the sub-group in the step.
    """
    part, compute = shard(count, world_size), COMPUTE_BYTES[precision]
    if zero_stage < 2:
        whole = FP32_BYTES * count
        return whole + (0 if precision == "fp32" else compute * largest), whole
    if zero_stage == 2:
        summed = 0 if offloaded else FP32_BYTES * part
        if precision == "fp32":
            return compute * part + summed * several_passes, compute * part + summed
        return compute * part + summed, compute * part + 2 * summed
    if offloaded:
        return 0, 0
    return FP32_BYTES * part, FP32_BYTES * (part + min(part, LIVE_ELEMENTS))


def optimizer_bytes(count: int, world_size: int, zero_stage: int, precision: str, moments: int) -> int:
    """Moments and master weights in fp32: 12 bytes per parameter with Adam, 8 with Lion; in parts from stage 1 on.

    Plain fp32 at stage 0 updates the weights themselves; the ZeRO optimizers clone their part in fp32 too.
    """
    master = 0 if zero_stage == 0 and precision == "fp32" else 1
    elements = count if zero_stage == 0 else shard(count, world_size)
    return FP32_BYTES * (moments + master) * elements


def bucket_elements(count: int) -> int:
    """`reduce_bucket_size` for DeepSpeed: its default, but never more than the model has (it is allocated whole)."""
    return min(BUCKET_ELEMENTS, count)


def bucket_bytes(count: int, world_size: int, zero_stage: int, precision: str, offloaded: bool) -> int:
    """Communication buffers: a bucket from ZeRO-2 on, two there with several ranks (overlap_comm); its fp32 copy at 3.

    At stage 1 bf16 reduces in place; fp32 and offloaded runs use the optimizer of stage 2, with an fp32 bucket.
    """
    compute = COMPUTE_BYTES[precision]
    stage_1 = FP32_BYTES if precision == "fp32" or offloaded else 0
    stage_2 = compute * (2 if world_size > 1 else 1)
    per_element = {0: 0, 1: stage_1, 2: stage_2, 3: compute + FP32_BYTES}[zero_stage]
    return per_element * bucket_elements(count)
