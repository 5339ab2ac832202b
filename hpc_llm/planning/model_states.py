"""Bytes of weights, gradients, optimizer states and communication on one rank, by ZeRO stage.

What DeepSpeed holds is taken from its 0.19.8 source (runtime/).
"""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.planning.parameters import COMPUTE_BYTES, FP32_BYTES

# DeepSpeed's default reduce_bucket_size, and what it flattens at stage 0.
BUCKET_ELEMENTS = 500_000_000
LEAST_BUCKET = 2**22  # elements; 8 MB of bf16 are sent at about the same speed per byte as more
BUCKETS_IN_A_PASS = 16
LIVE_ELEMENTS = 1_000_000_000  # ZeRO-3's max_live_parameters and sub_group_size


@dataclass(frozen=True)
class ModelStates:
    """What decides how many bytes a rank holds of the model's states."""

    parameters: int  # of the whole model
    output_matrix: int  # elements; a separate group of the optimizer
    world_size: int
    zero_stage: int
    precision: str
    moments: int  # fp32 numbers of optimizer state per parameter
    offloaded: bool = False  # optimizer states are in host memory
    several_passes: bool = False  # gradients are summed over the passes of a step

    @property
    def part(self) -> int:
        """Parameters of one rank's part."""
        return shard(self.parameters, self.world_size)

    @property
    def summed(self) -> int:
        """Bytes per gradient of its sum over passes, if there are several."""
        return FP32_BYTES if self.several_passes else 0

    @property
    def compute(self) -> int:
        """Bytes of a number in passes."""
        return COMPUTE_BYTES[self.precision]


def shard(count: int, world_size: int) -> int:
    """Elements of one rank's part."""
    return -(-count // world_size)


@dataclass(frozen=True)
class Weights:
    """Bytes of weights in the compute dtype."""

    in_passes: int
    in_step: int


def weight_bytes(states: ModelStates) -> Weights:
    """Weights in passes and in the optimizer's step.

    ZeRO-3 keeps a part, and gathers up to LIVE_ELEMENTS around the layer at work.
    """
    if states.zero_stage < 3:
        whole = states.compute * states.parameters
        return Weights(whole, whole)
    own = states.compute * states.part
    gathered = states.compute * min(states.parameters, LIVE_ELEMENTS)
    return Weights(own + gathered, own)


@dataclass(frozen=True)
class Gradients:
    """Bytes of gradients and of their sums over passes."""

    held: int  # at the loss
    whole: int  # at the end of backward
    step: int  # with what is copied for it


def gradient_bytes(states: ModelStates) -> Gradients:
    """Gradients of the compute dtype and their fp32 sums.

    - fp32, stage 0: one full gradient, and at the end a flat copy of up to a bucket to reduce.
    - fp32, stage 1: one full gradient; with several passes also their sum.
    - bf16, stage 1 (BF16_Optimizer, immediate_grad_update; zero.gradient_sums): a full fp32 sum; a
      bf16 gradient is freed as soon as it is added.
    - stage 2: a part, and with several passes its fp32 sum; in the step also a group's fp32 copy.
      In bf16 the sum exists with one pass too, and in the step only it and the last bucket.
      Offloaded, fp32 is in host memory.
    - stage 3: a flat fp32 part; then the copy of the sub-group in the step.
    """
    whole = FP32_BYTES * states.parameters
    rest = states.parameters - states.output_matrix
    group = FP32_BYTES * shard(max(states.output_matrix, rest), states.world_size)
    if states.zero_stage == 0:
        flat = FP32_BYTES * min(BUCKET_ELEMENTS, states.parameters)
        return Gradients(states.summed * states.parameters, whole, whole + flat)
    if states.zero_stage == 1 and states.precision == "fp32":
        return Gradients(2 * states.summed * states.parameters, whole, whole + group)
    if states.zero_stage == 1:
        return Gradients(whole, whole, whole)
    if states.zero_stage == 2:
        return _gradients_of_stage_2(states, group)
    if states.offloaded:
        return Gradients(0, 0, 0)
    part = FP32_BYTES * states.part
    return Gradients(part, part, part + FP32_BYTES * min(states.part, LIVE_ELEMENTS))


def _gradients_of_stage_2(states: ModelStates, group: int) -> Gradients:
    part = states.compute * states.part
    if states.offloaded:
        return Gradients(0, part, part + group)
    sums = states.summed * states.part
    step = part + sums + group
    if states.precision == "bf16":
        bucket = states.compute * bucket_elements(states.parameters)
        step = FP32_BYTES * states.part + bucket + group
    return Gradients(sums, part + sums, step)


def optimizer_bytes(states: ModelStates) -> int:
    """Moments and master weights in fp32, in parts from stage 1 on.

    12 bytes per parameter with Adam, 8 with Lion. Plain fp32 at stage 0 updates the weights
    themselves; the ZeRO optimizers clone their part in fp32 too.
    """
    if states.zero_stage > 0:
        return FP32_BYTES * (states.moments + 1) * states.part
    if states.precision == "fp32":
        return FP32_BYTES * states.moments * states.parameters
    return FP32_BYTES * (states.moments + 1) * states.parameters


def bucket_elements(count: int) -> int:
    """`reduce_bucket_size` for DeepSpeed: its default, or less for several buckets per backward.

    A bucket is reduced when it is full; one that held the whole model would be full only when
    backward is over.
    """
    return min(BUCKET_ELEMENTS, max(count // BUCKETS_IN_A_PASS, LEAST_BUCKET), count)


@dataclass(frozen=True)
class Buckets:
    """Bytes of communication buffers."""

    always: int
    backward: int  # and more while it goes on


def bucket_bytes(states: ModelStates) -> Buckets:
    """A bucket from ZeRO-2 on, two with several ranks (overlap_comm).

    Stage 3 keeps its buckets all the time, and copies one of bf16 to fp32. At stage 1 bf16 reduces
    in place; fp32 and offloaded runs use the optimizer of stage 2, with an fp32 bucket.
    """
    elements = bucket_elements(states.parameters)
    bucket = states.compute * elements
    in_fp32 = FP32_BYTES * elements
    is_fp32 = states.precision == "fp32"
    if states.zero_stage == 1 and (is_fp32 or states.offloaded):
        return Buckets(0, in_fp32)
    if states.zero_stage == 2 and states.world_size > 1:
        return Buckets(0, 2 * bucket)
    if states.zero_stage == 2:
        return Buckets(0, bucket)
    if states.zero_stage == 3 and is_fp32:
        return Buckets(bucket, 0)
    if states.zero_stage == 3:
        return Buckets(bucket, in_fp32)
    return Buckets(0, 0)
