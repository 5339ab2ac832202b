"""Memory per rank: known totals, and directions that must hold."""

from __future__ import annotations

import pytest

from hpc_llm.planning.memory import MemoryEstimate, activation_bytes, bucket_elements, estimate, optimizer_bytes
from hpc_llm.planning.parameters import parameter_count
from tests.configs import make_config

WORDS = ("model=mpt-7b", "cluster=a100x64")


def memory(*words: str, stage: int = 1, checkpointing: bool = False, micro_batch: int = 1) -> MemoryEstimate:
    return estimate(make_config(*WORDS, *words), stage, checkpointing, micro_batch)


def test_bf16_at_stage_1_holds_weights_and_both_gradients_whole() -> None:
    count = parameter_count(make_config(*WORDS).model)
    found = memory()
    assert (found.weights, found.gradients) == (2 * count, 6 * count)
    assert found.optimizer == pytest.approx(12 * count / 64, rel=1e-6)


def test_model_states_shrink_with_every_zero_stage() -> None:
    states = [(m := memory(stage=stage)).weights + m.gradients + m.optimizer for stage in (1, 2, 3)]
    assert states == sorted(states, reverse=True)
    assert len(set(states)) == 3


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_grows_with_the_micro_batch(stage: int, checkpointing: bool) -> None:
    totals = [memory(stage=stage, checkpointing=checkpointing, micro_batch=size).total for size in (1, 2, 3, 8)]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_memory_shrinks_with_the_number_of_nodes(stage: int) -> None:
    totals = [memory(f"cluster.nodes={nodes}", stage=stage).total for nodes in (1, 2, 8, 64)]
    assert totals == sorted(set(totals), reverse=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_checkpointing_saves_activations_alone(stage: int) -> None:
    with_it, without = memory(stage=stage, checkpointing=True), memory(stage=stage)
    assert with_it.activations < without.activations / 4
    assert with_it.total - without.total == with_it.activations - without.activations


def test_activations_without_checkpointing_are_korthikantis_without_dropout_and_scores() -> None:
    """arXiv 2205.05198: 34 bytes per s·h and layer, less 2 of dropout masks, plus what lies outside the layers."""
    model = make_config(*WORDS).model
    inside = 32 * 2048 * model.d_model * model.n_layers
    outside = 2 * (2 * model.expansion_ratio + 2) * 2048 * model.d_model
    assert activation_bytes(model, 2048, 2, False) == inside + outside


def test_the_alibi_bias_is_counted_once_for_all_layers_and_sequences() -> None:
    model = make_config(*WORDS).model
    found = memory(micro_batch=3)
    assert found.activations - 3 * activation_bytes(model, 2048, 2, False) == model.n_heads * 2048 * 2048 * 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_moves_to_the_host(stage: int) -> None:
    here, there = memory(stage=stage), memory("optim=cpu_adam", stage=stage)
    assert there.optimizer == here.host == 0
    assert there.host >= here.optimizer
    assert there.total < here.total


def test_lion_needs_four_bytes_less_than_adam() -> None:
    assert [optimizer_bytes(100, 1, 1, "bf16", moments) for moments in (2, 1)] == [1200, 800]


def test_plain_fp32_has_no_master_copy_but_zero_clones_its_part() -> None:
    assert [optimizer_bytes(100, 4, stage, "fp32", 2) for stage in (0, 1)] == [800, 300]


def test_buckets_are_never_larger_than_the_model() -> None:
    assert bucket_elements(1000) == 1000
    assert bucket_elements(10**12) == 500_000_000


def test_a_cpu_has_no_cuda_context() -> None:
    assert estimate(make_config("cluster=local-slurm"), 1, False, 1).overhead == 0
