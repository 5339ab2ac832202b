"""Memory per rank: known totals, and directions that must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hpc_llm.config.schema import ModelConfig, RunConfig
from hpc_llm.model.transformer import Transformer
from hpc_llm.planning.activations import activation_bytes
from hpc_llm.planning.choice import choices
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.memory import CONTEXT_BYTES, MemoryEstimate, estimate, moments
from hpc_llm.planning.model_states import (
    ModelStates,
    bucket_bytes,
    bucket_elements,
    gradient_bytes,
    optimizer_bytes,
)
from hpc_llm.planning.parameters import parameter_count
from hpc_llm.planning.step_mode import StepMode
from tests.configs import make_config

STAGE_1 = StepMode(1, False)
WORDS = ("model=mpt-7b", "cluster=a100x64", "train.attention=sdpa", "train.compile=false")


def memory(
    *words: str, stage: int = 1, checkpointing: bool = False, micro_batch: int = 1
) -> MemoryEstimate:
    return estimate(typed(*WORDS, *words), StepMode(stage, checkpointing), micro_batch)


def typed(*words: str) -> RunConfig:
    """The configuration of `words`, of which the last of a key counts."""
    return make_config(*{word.partition("=")[0]: word for word in words}.values())


def test_bf16_at_stage_1_holds_weights_and_the_sum_of_gradients_whole() -> None:
    """At the end of backward also the shared matrix's gradient, from both of its uses."""
    model = make_config(*WORDS).model
    count = parameter_count(model)
    loss = memory(micro_batch=2)
    end = memory("train.seq_len=16")
    assert (loss.moment, loss.weights, loss.gradients) == ("loss", 2 * count, 4 * count)
    assert (end.moment, end.gradients) == (
        "gradients",
        4 * count + 2 * 2 * model.vocab_size * model.d_model,
    )
    assert loss.optimizer == end.optimizer == pytest.approx(12 * count / 64, rel=1e-6)


def test_model_states_shrink_with_every_zero_stage() -> None:
    states = [(m := memory(stage=stage)).weights + m.gradients + m.optimizer for stage in (1, 2, 3)]
    assert states == sorted(states, reverse=True)
    assert len(set(states)) == 3


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_grows_with_the_micro_batch(stage: int, checkpointing: bool) -> None:
    totals = [
        memory(stage=stage, checkpointing=checkpointing, micro_batch=size).total
        for size in (1, 2, 3, 8)
    ]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_memory_shrinks_with_the_number_of_nodes(stage: int) -> None:
    totals = [memory(f"cluster.nodes={nodes}", stage=stage).total for nodes in (1, 2, 8, 64)]
    assert totals == sorted(set(totals), reverse=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_checkpointing_saves_activations_alone(stage: int) -> None:
    with_it, without = (
        memory(stage=stage, checkpointing=on, micro_batch=16) for on in (True, False)
    )
    assert with_it.moment == without.moment == "loss"
    assert with_it.activations < without.activations / 8
    assert with_it.total - without.total == with_it.activations - without.activations


def test_activations_without_checkpointing_are_korthikantis_without_dropout_and_scores() -> None:
    """arXiv 2205.05198: 34 bytes per s·h and layer, less 2 of dropout masks.

    Plus what lies outside the layers.
    """
    model = make_config(*WORDS).model
    layer, ends, ffn = (
        2 * width * 2048 * model.d_model for width in (16, 2, 2 * model.expansion_ratio)
    )
    found = activation_bytes(model, 2048, 2, False)
    assert (found.kept, found.backward, found.layer) == (
        layer * model.n_layers + ends,
        ffn,
        layer + ffn,
    )
    found = activation_bytes(model, 2048, 2, True)
    assert (found.kept, found.backward, found.layer) == (
        layer // 16 * model.n_layers + ends,
        layer + ffn,
        layer + ffn,
    )


def test_the_alibi_bias_is_counted_once_for_all_layers_and_sequences() -> None:
    model = make_config(*WORDS).model
    found = memory(micro_batch=3)
    assert (
        found.activations - 3 * activation_bytes(model, 2048, 2, False).kept
        == model.n_heads * 2048 * 2048 * 2
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_moves_to_the_host(stage: int) -> None:
    here = memory(stage=stage)
    there = memory("optim=cpu_adam", stage=stage)
    assert there.optimizer == here.host == 0
    assert there.host >= here.optimizer
    assert there.total < here.total


def test_lion_needs_four_bytes_less_than_adam() -> None:
    adam = ModelStates(100, 10, 1, zero_stage=1, precision="bf16", moments=2)
    assert optimizer_bytes(adam) == 1200
    assert optimizer_bytes(replace(adam, moments=1)) == 800


def test_plain_fp32_has_no_master_copy_but_zero_clones_its_part() -> None:
    plain = ModelStates(100, 10, 4, zero_stage=0, precision="fp32", moments=2)
    assert optimizer_bytes(plain) == 800
    assert optimizer_bytes(replace(plain, zero_stage=1)) == 300


def test_buckets_are_never_larger_than_the_model() -> None:
    assert bucket_elements(1000) == 1000
    assert bucket_elements(10**12) == 500_000_000
    assert bucket_elements(10**7) == 2**22
    assert bucket_elements(16 * 10**8) == 10**8


def test_reduction_beside_backward_takes_a_second_bucket() -> None:
    alone = ModelStates(1000, 10, 1, zero_stage=2, precision="bf16", moments=2)
    assert bucket_bytes(alone).backward == 2000
    assert bucket_bytes(replace(alone, world_size=2)).backward == 4000


def test_a_cpu_has_no_cuda_context() -> None:
    assert estimate(make_config("cluster=local-slurm"), STAGE_1, 1).overhead < CONTEXT_BYTES / 8


def test_what_the_step_copies_counts_where_it_is_more_than_the_activations() -> None:
    """They are gone by then: with long sequences the loss is the peak, with short ones the step."""
    alone = ("cluster.nodes=1", "cluster.gpus_per_node=1")
    short = memory(*alone, "train.seq_len=16", stage=2)
    long = memory(*alone, stage=2, micro_batch=64)
    model = make_config(*WORDS).model
    count = parameter_count(model)
    assert (long.moment, short.moment) == ("loss", "step")
    copy = 4 * (count - model.vocab_size * model.d_model)  # of one group
    assert short.gradients == 4 * count + 2 * bucket_elements(count) + copy
    assert short.activations == model.n_heads * 16 * 16 * 2  # the bias alone


def test_stage_3_copies_a_sub_group_and_has_let_its_gathered_weights_go() -> None:
    count = parameter_count(make_config(*WORDS).model)
    config = make_config(*WORDS, "cluster.nodes=1", "cluster.gpus_per_node=1")
    step = moments(config, StepMode(3, False), 1)["step"]
    assert (step.weights, step.gradients) == (2 * count, 4 * count + 4 * 10**9)


def test_passes_are_summed_in_fp32() -> None:
    """At a later pass's loss earlier passes are summed; in fp32 at stage 1 a gradient too."""
    held = {}
    for stage, precision in (
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (1, "bf16"),
        (2, "bf16"),
        (3, "bf16"),
    ):
        one_pass = ModelStates(100, 10, 1, stage, precision, moments=2)
        passes = (one_pass, replace(one_pass, several_passes=True))
        held[stage, precision] = [gradient_bytes(states).held for states in passes]
    assert held == {
        (0, "fp32"): [0, 400],
        (1, "fp32"): [0, 800],
        (2, "fp32"): [0, 400],
        (1, "bf16"): [400, 400],
        (2, "bf16"): [0, 400],
        (3, "bf16"): [400, 400],
    }


def test_folded_alibi_stores_no_bias() -> None:
    long = ("model=mpt-7b-8k", "cluster=a100x64", "train.attention=")
    kept, less = (
        estimate(make_config(*long[:2], long[2] + name), STAGE_1, 1) for name in ("sdpa", "folded")
    )
    bias = 32 * 8192 * 8192 * 2
    assert (
        0.8 * bias < kept.activations - less.activations < bias
    )  # the extra dimensions cost some of it
    folded = memory("train.attention=folded").activations
    windowed = memory("train.attention=folded", "model.sliding_window=512").activations
    assert windowed - folded == 2048 * 2048 * 2  # one mask for all heads


def test_documents_need_a_mask_for_every_sequence() -> None:
    words = ("model=llama-1b", "cluster=a100x64")
    packed = "data.packing=best_fit"
    plain, masked, without = (
        estimate(make_config(*words, *more), STAGE_1, 3).activations
        for more in ((), (packed, "train.attention=sdpa"), (packed, "train.attention=flash"))
    )
    assert masked - plain == 3 * 2048 * 2048 * 2
    assert without == plain


def logits(*words: str) -> int:
    """Bytes at the loss, of four sequences."""
    return moments(typed(*WORDS, *words), STAGE_1, 4)["loss"].logits


def test_logits_in_chunks_cost_their_chunk_and_a_gradient_of_the_output_matrix() -> None:
    model = make_config(*WORDS).model
    found = logits("train.loss_chunk=512")
    assert found == model.vocab_size * (512 * (2 + 12) + model.d_model * (2 + 4))
    assert found < logits() / 3


def test_a_compiled_loss_keeps_no_fp32_logits() -> None:
    vocab = make_config(*WORDS).model.vocab_size
    assert logits("train.compile=true") == 4 * 2048 * vocab * 2
    assert (
        logits("train.compile=true", "cluster.device=cpu", "train.precision=fp32")
        == 4 * 2048 * vocab * 4
    )
    eager, compiled = (
        logits("train.loss_chunk=512", f"train.compile={on}") for on in ("false", "true")
    )
    assert eager - compiled == 512 * vocab * 12


# Sequences of 2,048 tokens a pass and GiB at the peak of torch's allocator on an H100, one rank at
# ZeRO 1, bf16, compiled, without checkpointing (benchmarks/training.md, 26 Nov 2026).
ON_AN_H100 = {
    "mpt-125m": (16, 14.40),
    "mpt-1b": (8, 47.93),
    "mpt-3b": (4, 65.53),
    "llama-125m": (16, 15.46),
    "llama-1b": (8, 42.48),
    "llama-3b": (2, 64.60),
}


@pytest.mark.parametrize("model", ON_AN_H100)
def test_the_plan_is_within_a_tenth_of_what_a_gpu_gave_out(model: str) -> None:
    micro_batch, measured = ON_AN_H100[model]
    config = make_config(
        f"model={model}", "cluster.gpu=h100-80gb", "cluster.device=cuda", "train.seq_len=2048"
    )
    assert estimate(config, STAGE_1, micro_batch).tensors / GIB == pytest.approx(measured, rel=0.1)


def test_muon_is_never_planned_at_stage_3() -> None:
    modes = {
        choice.mode.zero_stage
        for choice in choices(make_config("model=mpt-7b", "cluster=a100x64", "optim=muon"), 0)
    }
    assert modes == {1, 2}


SHAPES = [
    (),
    ("model.positions=rope",),
    ("model.n_kv_heads=1",),
    ("model.ffn=swiglu", "model.d_ffn=300"),
    ("model.norm=rmsnorm",),
    ("model.norm=layernorm",),
    ("model.qk_ln=true",),
    ("model.clip_qkv=1",),
    ("model.bias=true", "model.positions=learned"),
    ("model=llama-tiny",),
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_the_planned_activations_are_what_autograd_keeps(
    words: tuple[str, ...], precision: torch.dtype
) -> None:
    model = make_config(*words, "model.n_layers=4").model
    assert kept_bytes(model, "sdpa", precision) == pytest.approx(
        planned_bytes(model, "sdpa", precision), rel=0.08
    )


@pytest.mark.parametrize("backend", ["folded", "blocked"])
def test_so_are_those_of_other_ways_to_attend(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hpc_llm.config.computing.SMALLEST_BLOCK", 32
    )  # as many blocks as for longer sequences
    model = make_config("model.n_layers=4").model
    kept, planned = (count(model, backend, torch.bfloat16) for count in (kept_bytes, planned_bytes))
    assert kept == pytest.approx(planned, rel=0.08)


def planned_bytes(model: ModelConfig, backend: str, precision: torch.dtype) -> int:
    return activation_bytes(model, 128, precision.itemsize, False, backend, on_cpu=True).kept


def kept_bytes(model: ModelConfig, backend: str, precision: torch.dtype) -> int:
    """Storage of all that a forward pass on the CPU saves, parameters and buffers left out."""
    made = Transformer(model, 128, attention=backend).to(precision)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*made.parameters(), *made.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made.hidden(torch.zeros(1, 128, dtype=torch.int64))
    return sum(
        tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own
    )
