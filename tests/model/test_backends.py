"""Every way to compute attention is the plain formula, forward and backward, with and without
documents.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends import make_backend
from hpc_llm.model.backends.flash import boundaries
from hpc_llm.model.backends.flex import Flex
from hpc_llm.model.positions import alibi_slopes
from tests.configs import make_config
from tests.model.plain import plain_attention

LENGTH = 24
SHAPES = {  # heads that are no power of two, and fewer heads of keys and values
    "alibi": ("model.d_model=48", "model.n_heads=3"),
    "alibi-gqa-window": (
        "model.d_model=96",
        "model.n_heads=6",
        "model.n_kv_heads=2",
        "model.sliding_window=5",
    ),
    "alibi-steep": (
        "model.d_model=64",
        "model.n_heads=4",
        "model.n_kv_heads=1",
        "model.alibi_bias_max=16",
    ),
    "none": ("model.d_model=48", "model.n_heads=3", "model.positions=none"),
    "none-gqa-window": (
        *("model.d_model=96", "model.n_heads=6", "model.n_kv_heads=3", "model.positions=none"),
        "model.sliding_window=7",
    ),
}
BACKWARD = [
    (name, shape)
    for name in ("sdpa", "blocked", "folded", "flash", "flex")
    for shape in SHAPES
    if name != "folded" or shape.startswith("alibi")
]


def config_of(shape: str) -> ModelConfig:
    return make_config(*SHAPES[shape]).model


def inputs(config: ModelConfig) -> tuple[Tensor, ...]:
    """Queries, keys and values of two sequences."""
    torch.manual_seed(0)
    heads = (config.n_heads, config.kv_heads, config.kv_heads)
    return tuple(
        torch.randn(2, count, LENGTH, config.head_size, requires_grad=True) for count in heads
    )


def documents(packed: bool) -> Tensor | None:
    """Three documents a row, of other lengths in each; the last is padding."""
    if not packed:
        return None
    rows = [
        torch.repeat_interleave(torch.tensor([1, 2, 0]), torch.tensor(sizes))
        for sizes in ([9, 10, 5], [1, 20, 3])
    ]
    return torch.stack(rows).int()


def attend(name: str, config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, packed: bool) -> Tensor:
    backend = make_backend(name, config, LENGTH + 3)  # made for longer sequences than it gets
    constant = backend.constant
    if constant is not None and constant.is_floating_point():
        constant = constant.to(q.dtype)
    shared = backend.shared(constant, torch.zeros(2, LENGTH, dtype=torch.int64), documents(packed))
    return backend.attend(q, k, v, shared)


def varlen(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _: Tensor, *lengths: int, **options: Any
) -> Tensor:
    """flash-attn's function in slow words: sequences of unequal length, laid end to end, [tokens,
    heads, head].
    """
    assert options["causal"] and torch.equal(ends, _)
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        assert 0 <= end - start <= lengths[0]  # flash-attn passes over sequences of no tokens
        one = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        left = options["window_size"][0]
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        bias = torch.zeros(1, 1, end - start, end - start)
        if options["alibi_slopes"] is not None:
            bias = -options["alibi_slopes"][None, :, None, None] * distance
        hidden = (distance < 0) | (
            (distance > left) if left >= 0 else torch.zeros_like(distance, dtype=torch.bool)
        )
        mixed = F.scaled_dot_product_attention(
            *one, attn_mask=bias.masked_fill(hidden, -torch.inf), enable_gqa=True
        )
        found.append(mixed[0].transpose(0, 1))
    return torch.cat(found)


@pytest.fixture(autouse=True)
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package exists for CUDA alone: its function stands in for it, so that what we hand to it
    is tested.
    """
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.fixture(autouse=True)
def flex_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses its backward there, because nothing fuses it; the formula is the same."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, the last one short, on the sequences of these tests."""
    monkeypatch.setattr("hpc_llm.config.computing.SMALLEST_BLOCK", 7)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "shape"), BACKWARD)
def test_forward_and_backward_are_the_formulas(name: str, shape: str, packed: bool) -> None:
    config = config_of(shape)
    here = inputs(config)
    there = inputs(config)
    weights = torch.randn(2, config.n_heads, LENGTH, config.head_size)
    found = attend(name, config, *here, packed)
    wanted = plain_attention(*there, config, documents(packed))
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=2e-6)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "blocked", "folded", "flex"])
def test_gradients_in_bf16_are_off_by_rounding_alone(name: str) -> None:
    config = config_of("alibi")
    here = tuple(x.detach().bfloat16().requires_grad_() for x in inputs(config))
    there = tuple(x.detach().float().requires_grad_() for x in here)
    weights = torch.randn(2, config.n_heads, LENGTH, config.head_size).bfloat16()
    (attend(name, config, *here, True) * weights).sum().backward()
    (plain_attention(*there, config, documents(True)) * weights.float()).sum().backward()
    for one, other in zip(here, there, strict=True):
        off = (one.grad.float() - other.grad).norm() / other.grad.norm()
        assert off < 3 * 2**-8


def test_folded_alibi_is_nearer_to_the_formula_in_bf16_than_a_bias_of_bf16() -> None:
    """Far from the diagonal a bias of 8 bits is off by up to 0.4 % of itself; the folded one has
    24.
    """
    config = make_config("model.d_model=384", "model.n_heads=6", "model.max_seq_len=1024").model
    length = 1024
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 6, length, 64).bfloat16() for _ in range(3))
    tokens = torch.zeros(1, length, dtype=torch.int64)
    errors = {}
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    bias = (-alibi_slopes(6)[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
    wanted = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=bias.double()[None]
    )
    for name in ("sdpa", "folded"):
        backend = make_backend(name, config, length)
        constant = None if backend.constant is None else backend.constant.bfloat16()
        found = backend.attend(q, k, v, backend.shared(constant, tokens, None))
        errors[name] = (found.double() - wanted).square().mean().sqrt().item()
    rounding = (wanted.bfloat16().double() - wanted).square().mean().sqrt().item()
    assert errors["folded"] < errors["sdpa"]
    assert errors["folded"] < 3 * rounding


def test_documents_of_the_next_pass_are_nothing_new_to_the_compiler() -> None:
    """FlexAttention gets them inside a function that is made anew for every pass."""
    config = config_of("alibi")
    backend = Flex(config_of("alibi"))
    q, k, v = (x.detach() for x in inputs(config))
    compiled = torch.compile(backend.attend, backend="eager", dynamic=False)
    one = documents(True)
    other = documents(True)
    assert one is not None and other is not None
    other = other.flip(0)
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    with torch.no_grad():
        compiled(q, k, v, backend.shared(None, tokens, one))
        with torch.compiler.set_stance("fail_on_recompile"):
            found = compiled(q, k, v, backend.shared(None, tokens, other))
    torch.testing.assert_close(
        found, plain_attention(q, k, v, config, other).float(), rtol=1e-5, atol=2e-6
    )


def test_a_window_hides_what_lies_behind_it() -> None:
    config = config_of("none-gqa-window")
    q, k, v = (x.detach() for x in inputs(config))
    moved = v.clone()
    moved[:, :, 10] += 1.0
    changed = (
        (attend("sdpa", config, q, k, v, False) != attend("sdpa", config, q, k, moved, False))
        .any(-1)
        .any(1)
    )
    assert changed[0].nonzero().flatten().tolist() == list(range(10, 17))


def test_documents_of_all_rows_are_laid_end_to_end() -> None:
    packed = documents(True)
    assert packed is not None
    assert boundaries(packed).tolist() == [0, 9, 19, 24, 25, 45, 48, 48]


def test_any_number_of_documents_has_boundaries_of_few_lengths() -> None:
    lengths = [len(boundaries(torch.arange(64)[None] // size)) for size in range(1, 65)]
    assert set(lengths) == {2, 4, 8, 16, 32, 64, 128}


def test_flash_attention_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(
        InputError, match=r"train\.attention=flash: the package flash-attn is not installed here"
    ):
        make_backend("flash", config_of("alibi"), LENGTH)
