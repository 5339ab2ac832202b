"""Counts against the published models."""

from __future__ import annotations

import pytest
import torch

from hpc_llm.model.transformer import Transformer
from hpc_llm.planning.parameters import checkpoint_bytes, flops_per_token, parameter_count
from tests.configs import make_config, presets

PUBLISHED_BILLIONS = {
    "mpt-125m": 0.125,
    "mpt-350m": 0.350,
    "mpt-760m": 0.760,
    "mpt-1b": 1.3,
    "mpt-3b": 2.7,
    "mpt-7b": 6.65,
    "mpt-13b": 13.0,
    "mpt-30b": 29.95,
    "mpt-70b": 65.0,
    "mpt-7b-8k": 6.65,
    "mpt-7b-storywriter-65k": 6.65,
}


def test_mpt_7b_has_the_released_number_of_parameters() -> None:
    model = make_config("model=mpt-7b").model
    assert model.vocab_size == 50432
    assert parameter_count(model) == 6_649_286_656


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_every_published_size_has_about_the_parameters_of_its_name(
    name: str, billions: float
) -> None:
    assert parameter_count(make_config(f"model={name}").model) / 1e9 == pytest.approx(
        billions, rel=0.03
    )


# d_model, heads, heads of keys and values, layers, width of the FFN, vocabulary, longest sequence
SHAPES = {
    "mpt-125m": (768, 12, 12, 12, 3072, 50368, 2048),
    "mpt-350m": (1024, 16, 16, 24, 4096, 50368, 2048),
    "mpt-760m": (1536, 12, 12, 24, 6144, 50368, 2048),
    "mpt-1b": (2048, 16, 16, 24, 8192, 50368, 2048),
    "mpt-3b": (2560, 20, 20, 32, 10240, 50368, 2048),
    "mpt-7b": (4096, 32, 32, 32, 16384, 50432, 2048),
    "mpt-13b": (5120, 40, 40, 40, 20480, 50368, 2048),
    "mpt-30b": (7168, 64, 64, 48, 28672, 50432, 2048),  # the released card's heads
    "mpt-70b": (8192, 64, 64, 80, 32768, 50368, 2048),
    "mpt-7b-8k": (4096, 32, 32, 32, 16384, 50432, 8192),
    "mpt-7b-storywriter-65k": (4096, 32, 32, 32, 16384, 50432, 65536),
    # Llama's own vocabularies have 128,256 pieces (32,000 before)
    "llama-125m": (768, 12, 4, 12, 2048, 50432, 2048),
    "llama-350m": (1024, 16, 4, 24, 2816, 50432, 2048),
    "llama-1b": (2048, 32, 8, 16, 8192, 50432, 4096),
    "llama-3b": (3072, 24, 8, 28, 8192, 50432, 4096),
    "llama-8b": (4096, 32, 8, 32, 14336, 50432, 8192),
}


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_every_preset_has_its_published_shape(name: str, shape: tuple[int, ...]) -> None:
    model = make_config(f"model={name}").model
    sizes = (model.d_model, model.n_heads, model.kv_heads, model.n_layers, model.ffn_size)
    assert (*sizes, model.vocab_size, model.max_seq_len) == shape


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("mpt")])
def test_mpt_presets_are_mpts(name: str) -> None:
    model = make_config(f"model={name}").model
    story = name == "mpt-7b-storywriter-65k"
    assert (model.positions, model.alibi_bias_max, model.clip_qkv) == (
        "alibi",
        16 if story else 8,
        6 if story else None,
    )
    assert (model.norm, model.ffn, model.bias, model.tied) == (
        "low_precision_layernorm",
        "gelu",
        False,
        True,
    )


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("llama")])
def test_llama_presets_are_llamas(name: str) -> None:
    model = make_config(f"model={name}").model
    theta = 10_000 if name in ("llama-125m", "llama-350m") else 500_000  # Llama 2's, and 3's
    assert (model.positions, model.rope_theta, model.clip_qkv) == ("rope", theta, None)
    assert (model.norm, model.ffn, model.bias, model.tied) == ("rmsnorm", "swiglu", False, False)


@pytest.mark.parametrize("name", presets("model"))
def test_every_preset_has_the_planned_number_of_parameters(name: str) -> None:
    model = make_config(f"model={name}").model
    with torch.device("meta"):
        real = Transformer(model, 16)
    assert parameter_count(model) == sum(parameter.numel() for parameter in real.parameters())


OPTIONS = [
    ("model.bias=true",),
    ("model.bias=true", "model=llama-tiny", "model.qk_ln=true"),
    ("model.qk_ln=true", "model.n_kv_heads=2", "model.bias=true"),
    ("model.positions=learned", "model.tied=false", "model.norm=layernorm"),
    ("model.ffn=swiglu", "model.d_ffn=100", "model.bias=true"),
    ("model.n_kv_heads=1", "model.expansion_ratio=3", "model.positions=rope"),
]


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_every_option_is_counted(words: tuple[str, ...]) -> None:
    model = make_config(*words).model
    real = Transformer(model, 16)
    assert parameter_count(model) == sum(parameter.numel() for parameter in real.parameters())


def test_flops_leave_out_what_is_only_looked_up() -> None:
    tied = make_config().model
    per_parameter = 6 * parameter_count(tied)
    for words in (["model.positions=learned"], ["model.tied=false"]):
        other = make_config(*words).model
        assert parameter_count(other) > parameter_count(tied)
        assert flops_per_token(other, 256) == flops_per_token(tied, 256)
    windowed = make_config("model.sliding_window=64").model
    attention = 12 * tied.n_layers * tied.d_model
    assert flops_per_token(windowed, 256) == per_parameter + attention * 64
    assert flops_per_token(windowed, 32) == per_parameter + attention * 32


def test_every_size_of_the_family_is_shipped() -> None:
    assert set(PUBLISHED_BILLIONS) <= set(presets("model"))


def test_flops_per_token_give_the_published_throughput_its_published_mfu() -> None:
    """LLM Foundry: 7b on H100 at 10,643 tokens/s/GPU is 46.4 % of 989 TFLOP/s."""
    flops = flops_per_token(make_config("model=mpt-7b").model, 2048)
    assert 10_643 * flops / 989e12 == pytest.approx(0.464, abs=0.002)


def test_longer_sequences_cost_more_per_token() -> None:
    model = make_config("model=mpt-7b").model
    longer = flops_per_token(model, 4096)
    shorter = flops_per_token(model, 2048)
    assert longer - shorter == 12 * model.n_layers * model.d_model * 2048


@pytest.mark.parametrize(
    ("optimizer", "precision", "zero_stage", "bytes_per_parameter"),
    [
        ("fused_adam", "bf16", 1, 14),
        ("cpu_adam", "bf16", 2, 14),
        ("fused_adam", "bf16", 3, 12),
        ("fused_lion", "bf16", 1, 10),
        ("cpu_lion", "bf16", 1, 14),
        ("torch_adam", "fp32", 0, 12),
        ("torch_adam", "fp32", 1, 16),
        ("torch_adam", "fp32", 2, 16),
        ("torch_adam", "fp32", 3, 12),
        ("fused_lion", "fp32", 0, 8),
    ],
)
def test_a_checkpoint_holds_weights_master_and_moments(
    optimizer: str, precision: str, zero_stage: int, bytes_per_parameter: int
) -> None:
    assert checkpoint_bytes(1000, optimizer, precision, zero_stage) == 1000 * bytes_per_parameter
