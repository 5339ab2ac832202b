"""Bytes per rank, part by part. What DeepSpeed holds is taken from its 0.19.8 source (runtime/).

N is the number of parameters, W the number of ranks, s·b·d one layer's activation of `micro_batch`
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hpc_llm.config import computing
from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.activations import activation_bytes, mask_elements
from hpc_llm.planning.batch import accumulation
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.parameters import COMPUTE_BYTES, FP32_BYTES, parameter_count

USABLE_FRACTION = 0.92  # of a GPU's memory; the rest is fragmentation
CONTEXT_BYTES = int(
    1.5 * GIB
)  # CUDA context with its loaded kernels, cuBLAS workspace, NCCL channels
CPU_PROCESS_BYTES = int(
    0.12 * GIB
)  # growth of a process beyond its imports, whatever it trains (benchmarks/memory.md)
CPU_HEAP = (
    0.15  # of activations and logits: overhead of tcmalloc, measured there too (launch.allocator)
)
BUCKET_ELEMENTS = (
    500_000_000  # DeepSpeed's default reduce_bucket_size, and what it flattens at stage 0
)
LEAST_BUCKET = 2**22  # elements; 8 MB of bf16 are sent at about the same speed per byte as more
BUCKETS_IN_A_PASS = 16
LIVE_ELEMENTS = 1_000_000_000  # ZeRO-3's max_live_parameters and sub_group_size
# Cross-entropy without a compiler: log-probabilities, their gradient and the logits' gradient, each
# in fp32.
LOSS_BYTES = 3 * FP32_BYTES


Moment = Literal["loss", "backward", "gradients", "step"]  # backward: its start; gradients: its end


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per rank at a moment of a step."""

    weights: int
    gradients: int  # with their sums and copies
    optimizer: int
    activations: int
    logits: int
    overhead: int  # CUDA context and NCCL; on a CPU the process, its heap and Gloo's copies
    buckets: int = 0  # of communication
    host: int = 0  # host memory of an offloaded optimizer; not part of the total
    moment: Moment = "loss"

    @property
    def total(self) -> int:
        return self.tensors + self.overhead

    @property
    def tensors(self) -> int:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.buckets
        )


def estimate(
    config: RunConfig, zero_stage: int, activation_checkpointing: bool, micro_batch: int
) -> MemoryEstimate:
    """The peak of one rank over a step: the moment that takes the most."""
    return max(
        moments(config, zero_stage, activation_checkpointing, micro_batch).values(),
        key=lambda moment: moment.total,
    )


def moments(
    config: RunConfig, zero_stage: int, activation_checkpointing: bool, micro_batch: int
) -> dict[Moment, MemoryEstimate]:
    """What one rank holds at four moments of a step.

    At the loss all activations and the logits exist; when backward begins, one layer's temporaries
    and the gradient of the output's matrix instead of the logits; when it ends, all gradients and
    one layer; then the optimizer steps.
    """
    model = config.model
    precision = config.train.precision
    world = config.cluster.world_size
    offloaded = config.optim.offloaded
    on_cpu = config.cluster.device == "cpu"
    count = parameter_count(model)
    matrix = model.vocab_size * model.d_model
    compute = COMPUTE_BYTES[precision]
    states = optimizer_bytes(
        count, world, zero_stage, precision, optimizer(config.optim.name).moments
    )
    backend = computing.choose(config)
    sequence = activation_bytes(
        model, config.train.seq_len, compute, activation_checkpointing, backend, on_cpu
    )
    mask = mask_elements(config, backend, micro_batch) * compute
    tokens = micro_batch * config.train.seq_len
    # first: the output matrix's gradient. It exists when backward begins, and with chunks already
    # at the loss.
    compiled = computing.compiles(config)
    # Compiled, the logits' gradient replaces the logits; if bf16 products are computed in fp32,
    # these are copies.
    one_logit = compute + FP32_BYTES * (on_cpu and precision == "bf16")
    chunk = computing.loss_chunk(config)
    if chunk is None or chunk >= tokens:
        first = compute * matrix
        logits = tokens * model.vocab_size * (one_logit if compiled else LOSS_BYTES)
    else:
        first = (compute + FP32_BYTES) * matrix
        logits = (
            model.vocab_size * chunk * (one_logit if compiled else compute + LOSS_BYTES) + first
        )
    several = accumulation(config.train.global_batch, world, micro_batch) > 1
    found = gradient_bytes(count, matrix, world, zero_stage, precision, offloaded, several)
    # The embedding's gradient, and its sum with the output's, if the others are not reduced and
    # freed by then.
    twice = 2 * compute * matrix if model.tied and zero_stage < 2 else 0
    in_fp32 = (
        FP32_BYTES * matrix if on_cpu and precision == "bf16" else 0
    )  # a product of bf16 (model.linear)
    bucket = bucket_bytes(count, world, zero_stage, precision, offloaded)
    weights, own = weight_bytes(count, world, zero_stage, compute)
    kept = micro_batch * sequence.kept + mask
    layer = micro_batch * sequence.layer + mask
    common = MemoryEstimate(
        weights=weights,
        gradients=found.held,
        optimizer=0 if offloaded else states,
        activations=kept,
        logits=logits,
        overhead=CPU_PROCESS_BYTES + int(CPU_HEAP * (kept + logits)) if on_cpu else CONTEXT_BYTES,
        buckets=bucket.always,
        host=states + FP32_BYTES * shard(count, world) if offloaded else 0,
    )
    found_at = (
        common,
        replace(
            common,
            moment="backward",
            gradients=found.held + first + in_fp32,
            activations=kept + micro_batch * sequence.backward,
            logits=0,
        ),
        replace(
            common,
            moment="gradients",
            gradients=found.whole + twice + in_fp32,
            activations=layer,
            logits=0,
            buckets=bucket.always + bucket.backward,
            overhead=common.overhead
            + (bucket.always if on_cpu and zero_stage == 3 else 0),  # Gloo's copy
        ),
        replace(
            common, moment="step", weights=own, gradients=found.step, activations=mask, logits=0
        ),
    )
    return {one.moment: one for one in found_at}


def shard(count: int, world_size: int) -> int:
    """Elements of one rank's part."""
    return -(-count // world_size)


def weight_bytes(count: int, world_size: int, zero_stage: int, compute: int) -> tuple[int, int]:
    """Weights in the compute dtype, in passes and in the optimizer's step.

    ZeRO-3 keeps a part, and gathers up to LIVE_ELEMENTS around the layer at work.
    """
    if zero_stage < 3:
        return compute * count, compute * count
    own = compute * shard(count, world_size)
    return own + compute * min(count, LIVE_ELEMENTS), own


@dataclass(frozen=True)
class Gradients:
    """Bytes of gradients and of their sums over passes."""

    held: int  # at the loss
    whole: int  # at the end of backward
    step: int  # with what is copied for it


def gradient_bytes(
    count: int,
    matrix: int,
    world_size: int,
    zero_stage: int,
    precision: str,
    offloaded: bool,
    several_passes: bool,
) -> Gradients:
    """Gradients of the compute dtype and their fp32 sums; `matrix` elements form a separate group
    of the optimizer.

    - fp32, stage 0: one full gradient, and at the end a flat copy of up to a bucket to reduce.
    - fp32, stage 1: one full gradient; with several passes also their sum.
    - bf16, stage 1 (BF16_Optimizer, immediate_grad_update; training.reduction): a full fp32 sum; a
      bf16 gradient is
      freed as soon as it is added.
    - stage 2: a part, and with several passes its fp32 sum; in the step also a group's fp32 copy.
      In bf16 the sum
      exists with one pass too, and in the step only it and the last bucket. Offloaded, fp32 is in
      host memory.
    - stage 3: a flat fp32 part; then the copy of the sub-group in the step.
    """
    part = shard(count, world_size)
    compute = COMPUTE_BYTES[precision]
    sums = FP32_BYTES * several_passes
    group = shard(max(matrix, count - matrix), world_size)
    if zero_stage == 0:
        whole = FP32_BYTES * count
        return Gradients(sums * count, whole, whole + FP32_BYTES * min(BUCKET_ELEMENTS, count))
    if zero_stage == 1 and precision == "fp32":
        return Gradients(2 * sums * count, FP32_BYTES * count, FP32_BYTES * (count + group))
    if zero_stage == 1:
        return Gradients(FP32_BYTES * count, FP32_BYTES * count, FP32_BYTES * count)
    if zero_stage == 2:
        sums = 0 if offloaded else sums
        stepping = (compute + sums) * part
        if precision == "bf16" and not offloaded:
            stepping = FP32_BYTES * part + compute * bucket_elements(count)
        return Gradients(sums * part, (compute + sums) * part, stepping + FP32_BYTES * group)
    if offloaded:
        return Gradients(0, 0, 0)
    return Gradients(
        FP32_BYTES * part, FP32_BYTES * part, FP32_BYTES * (part + min(part, LIVE_ELEMENTS))
    )


def optimizer_bytes(
    count: int, world_size: int, zero_stage: int, precision: str, moments: int
) -> int:
    """Moments and master weights in fp32: 12 bytes per parameter with Adam, 8 with Lion; in parts
    from stage 1 on.

    Plain fp32 at stage 0 updates the weights themselves; the ZeRO optimizers clone their part in
    fp32 too.
    """
    master = 0 if zero_stage == 0 and precision == "fp32" else 1
    elements = count if zero_stage == 0 else shard(count, world_size)
    return FP32_BYTES * (moments + master) * elements


def bucket_elements(count: int) -> int:
    """`reduce_bucket_size` for DeepSpeed: its default, but small enough for several buckets per
    backward pass.

    A bucket is reduced when it is full; one that held the whole model would be full only when
    backward is over.
    """
    return min(BUCKET_ELEMENTS, max(count // BUCKETS_IN_A_PASS, LEAST_BUCKET), count)


@dataclass(frozen=True)
class Buckets:
    """Bytes of communication buffers."""

    always: int
    backward: int  # and more while it goes on


def bucket_bytes(
    count: int, world_size: int, zero_stage: int, precision: str, offloaded: bool
) -> Buckets:
    """A bucket from ZeRO-2 on, two with several ranks (overlap_comm).

    Stage 3 keeps its buckets all the time, and copies one of bf16 to fp32. At stage 1 bf16 reduces
    in place; fp32 and offloaded runs use the optimizer of stage 2, with an fp32 bucket.
    """
    compute = COMPUTE_BYTES[precision]
    elements = bucket_elements(count)
    if zero_stage == 1:
        return Buckets(0, FP32_BYTES * elements if precision == "fp32" or offloaded else 0)
    if zero_stage == 2:
        return Buckets(0, compute * elements * (2 if world_size > 1 else 1))
    if zero_stage == 3:
        return Buckets(compute * elements, 0 if precision == "fp32" else FP32_BYTES * elements)
    return Buckets(0, 0)
