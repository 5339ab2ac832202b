"""Bytes per rank, part by part, at four moments of a step; the plan counts with the largest sum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hpc_llm.config import computing
from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.activations import activation_bytes, mask_elements
from hpc_llm.planning.batch import accumulation
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.model_states import (
    ModelStates,
    bucket_bytes,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from hpc_llm.planning.parameters import COMPUTE_BYTES, FP32_BYTES, parameter_count
from hpc_llm.planning.step_mode import StepMode

USABLE_FRACTION = 0.92  # of a GPU's memory; the rest is fragmentation
# CUDA context with its loaded kernels, cuBLAS workspace, NCCL channels.
CONTEXT_BYTES = int(1.5 * GIB)
# Growth of a process beyond its imports, whatever it trains (benchmarks/memory.md).
CPU_PROCESS_BYTES = int(0.12 * GIB)
# Of activations and logits: overhead of tcmalloc, measured there too (training.allocator).
CPU_HEAP = 0.15
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


def estimate(config: RunConfig, mode: StepMode, micro_batch: int) -> MemoryEstimate:
    """The peak of one rank over a step: the moment that takes the most."""
    return max(moments(config, mode, micro_batch).values(), key=lambda moment: moment.total)


def moments(config: RunConfig, mode: StepMode, micro_batch: int) -> dict[Moment, MemoryEstimate]:
    """What one rank holds at four moments of a step.

    At the loss all activations and the logits exist; when backward begins, one layer's temporaries
    and the gradient of the output's matrix instead of the logits; when it ends, all gradients and
    one layer; then the optimizer steps.
    """
    states = _model_states(config, mode, micro_batch)
    weights = weight_bytes(states)
    gradients = gradient_bytes(states)
    buckets = bucket_bytes(states)
    passed = _pass_bytes(config, mode, micro_batch)
    common = MemoryEstimate(
        weights=weights.in_passes,
        gradients=gradients.held,
        optimizer=optimizer_bytes(states),
        activations=passed.kept,
        logits=passed.logits,
        overhead=_overhead(config, passed),
        buckets=buckets.always,
    )
    if states.offloaded:
        master = FP32_BYTES * states.part
        common = replace(common, optimizer=0, host=common.optimizer + master)
    backward = replace(
        common,
        moment="backward",
        gradients=gradients.held + passed.first_gradient + passed.product,
        activations=passed.kept + passed.backward,
        logits=0,
    )
    # The embedding's gradient, and its sum with the output's, if the others are not reduced and
    # freed by then.
    twice = 0
    if config.model.tied and mode.zero_stage < 2:
        twice = 2 * states.compute * states.output_matrix
    end = replace(
        common,
        moment="gradients",
        gradients=gradients.whole + twice + passed.product,
        activations=passed.layer,
        logits=0,
        buckets=buckets.always + buckets.backward,
    )
    if config.cluster.device == "cpu" and mode.zero_stage == 3:
        end = replace(end, overhead=common.overhead + buckets.always)  # Gloo's copy
    step = replace(
        common,
        moment="step",
        weights=weights.in_step,
        gradients=gradients.step,
        activations=passed.mask,
        logits=0,
    )
    return {"loss": common, "backward": backward, "gradients": end, "step": step}


def _model_states(config: RunConfig, mode: StepMode, micro_batch: int) -> ModelStates:
    world_size = config.cluster.world_size
    return ModelStates(
        parameters=parameter_count(config.model),
        output_matrix=config.model.vocab_size * config.model.d_model,
        world_size=world_size,
        zero_stage=mode.zero_stage,
        precision=config.train.precision,
        moments=optimizer(config.optim.name).moments,
        offloaded=config.optim.offloaded,
        several_passes=accumulation(config.train.global_batch, world_size, micro_batch) > 1,
    )


@dataclass(frozen=True)
class PassBytes:
    """Bytes of what one pass computes, beyond the model's states."""

    kept: int  # activations at the loss
    backward: int  # beside them while backward is in a layer
    layer: int  # activations in the last layer that backward comes to
    mask: int  # of attention, for all layers
    logits: int  # at the loss
    first_gradient: int  # of the output matrix, which backward computes first
    product: int  # of bf16 on a CPU, computed in fp32 (model.linear)


def _pass_bytes(config: RunConfig, mode: StepMode, micro_batch: int) -> PassBytes:
    model = config.model
    compute = COMPUTE_BYTES[config.train.precision]
    on_cpu = config.cluster.device == "cpu"
    backend = computing.choose(config)
    sequence = activation_bytes(
        model, config.train.seq_len, compute, mode.activation_checkpointing, backend, on_cpu
    )
    mask = mask_elements(config, backend, micro_batch) * compute
    matrix = model.vocab_size * model.d_model
    tokens = micro_batch * config.train.seq_len
    chunk = computing.loss_chunk(config)
    if chunk is None or chunk >= tokens:
        first_gradient = compute * matrix
        logits = tokens * model.vocab_size * _logit_bytes(config, in_chunks=False)
    else:
        # The output matrix's gradient exists already at the loss.
        first_gradient = (compute + FP32_BYTES) * matrix
        logits = chunk * model.vocab_size * _logit_bytes(config, in_chunks=True) + first_gradient
    return PassBytes(
        kept=micro_batch * sequence.kept + mask,
        backward=micro_batch * sequence.backward,
        layer=micro_batch * sequence.layer + mask,
        mask=mask,
        logits=logits,
        first_gradient=first_gradient,
        product=_copied_bytes(config) * matrix,
    )


def _logit_bytes(config: RunConfig, *, in_chunks: bool) -> int:
    """Bytes per logit at the loss."""
    compute = COMPUTE_BYTES[config.train.precision]
    if computing.compiles(config):
        # The logits' gradient replaces the logits; where products are in fp32, these are copies.
        return compute + _copied_bytes(config)
    if in_chunks:
        return compute + LOSS_BYTES
    return LOSS_BYTES


def _copied_bytes(config: RunConfig) -> int:
    """Bytes per number of the fp32 copies of a product of bf16, which a CPU makes."""
    if config.cluster.device == "cpu" and config.train.precision == "bf16":
        return FP32_BYTES
    return 0


def _overhead(config: RunConfig, passed: PassBytes) -> int:
    if config.cluster.device == "cpu":
        return CPU_PROCESS_BYTES + int(CPU_HEAP * (passed.kept + passed.logits))
    return CONTEXT_BYTES
