"""Products in ways of our own are those of torch, forward and backward, whatever is wanted of
them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.model import linear
from hpc_llm.model.linear import Linear

SHAPES = [(48, 70), (2, 24, 70), (5, 70), (0, 70), (70,)]


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor the way that is taken on AMD's alone."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "MKL_IS_SLOW", True)


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor the way that is taken where oneDNN has no bf16."""
    monkeypatch.setattr(linear, "BF16_IS_SLOW", True)


@pytest.mark.usefixtures("amd")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    ours = Linear(shape[-1], 4, bias=bias)
    theirs = torch.nn.Linear(shape[-1], 4, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x, y = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2)
    )
    found = ours(x)
    wanted = theirs(y)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def summed_in_turn(x: Tensor, y: Tensor) -> Tensor:
    """x · yᵀ in fp32, each product added to the sum of those before and rounded once, as a fused
    multiply-add does.
    """
    total = torch.zeros(len(x), len(y), dtype=torch.float64)
    for first, second in zip(x.double().T, y.double().T, strict=True):
        total = torch.addr(total, first, second).float().double()
    return total


def off(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the error, relative to that of the exact values."""
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("way", ["torch", "amd"])
def test_no_product_is_less_exact_than_its_terms_added_in_turn(
    way: str, request: pytest.FixtureRequest
) -> None:
    """The least exact of the usual orders: the error grows as the root of the number of terms.

    For 768 terms it is 5.0e-7, and that of oneDNN's forward product too, bit by bit. MKL adds up
    sums of fewer terms: 2.5e-7. With inputs rounded to TF32 or bf16, as libraries do on request, it
    would be 2.9e-4 or 2.3e-3. The 5 % are for other sums of the same kind: over 9,216 of them the
    error is known to 1 %.
    """
    if way == "amd":
        request.getfixturevalue("amd")
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(768, 768, generator=generator) for _ in range(3))
    given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    product = linear.linear(*given)
    product.backward(grad)
    num = 96  # rows and columns that are checked
    checks = {
        "product": (product.detach()[:num, :num], x[:num], weight[:num]),
        "gradient of the input": (given[0].grad[:num, :num], grad[:num], weight.T[:num]),
        "gradient of the weight": (given[1].grad[:num, :num], grad.T[:num], x.T[:num]),
    }
    for name, (found, one, other) in checks.items():
        exact = one.double() @ other.double().T
        assert off(found, exact) <= 1.05 * off(summed_in_turn(one, other), exact), name


@pytest.mark.usefixtures("amd")
def test_what_needs_no_gradient_gets_none_and_strides_do_not_matter() -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 64).t()
    weight = torch.randn(4, 70)
    torch.testing.assert_close(linear.linear(x, weight), F.linear(x, weight))
    for tensors in ((x.clone().requires_grad_(), weight), (x, weight.clone().requires_grad_())):
        linear.linear(*tensors).t().contiguous().t().sum().backward()
        wanted = [(one.grad is not None) for one in tensors]
        assert wanted == [one.requires_grad for one in tensors]


@pytest.mark.usefixtures("amd")
def test_it_is_oneDNN_that_computes_fp32_and_torch_the_rest() -> None:
    from torch.profiler import ProfilerActivity, profile

    def operators(dtype: torch.dtype) -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            linear.linear(torch.randn(16, 5, dtype=dtype), torch.randn(2, 5, dtype=dtype))
        return {event.key for event in seen.key_averages()}

    assert "aten::mkldnn_convolution" in operators(torch.float32)
    assert not any(
        "convolution" in name for name in operators(torch.bfloat16) | operators(torch.float64)
    )


@pytest.mark.parametrize("shape", [(48, 70), (16, 1)])
def test_operators_are_what_the_compiler_is_told_they_are(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    weight = torch.randn(4, shape[1])
    grad = torch.randn(shape[0], 4)
    torch.library.opcheck(linear._product, (x, weight))
    torch.library.opcheck(linear._product_input_grad, (grad, x, weight))
    torch.library.opcheck(linear._product_weight_grad, (grad, x, weight))


def graded(
    function: Callable[..., Tensor], *inputs: Tensor, wanted: tuple[bool, bool] = (True, True)
) -> list[Tensor]:
    """The product of two tensors, and the gradients that are wanted."""
    given = [
        one.detach().clone().requires_grad_(want) for one, want in zip(inputs, wanted, strict=True)
    ]
    product = function(*given)
    weights = torch.randn(product.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    product.backward(weights.to(product.dtype))
    assert [one.grad is not None for one in given] == list(wanted)
    return [product, *(one.grad for one in given if one.grad is not None)]


@pytest.mark.usefixtures("no_bf16")
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_by_way_of_fp32_is_the_exact_product_rounded_once(
    shape: tuple[int, ...], wanted: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.bfloat16)
    weight = torch.randn(4, 70, dtype=torch.bfloat16)
    found = graded(linear.linear, x, weight, wanted=wanted)
    exact = graded(F.linear, x.double(), weight.double(), wanted=wanted)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)


@pytest.mark.usefixtures("no_bf16")
def test_batches_of_products_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.bfloat16)
    y = torch.randn(2, 3, 7, 8, dtype=torch.bfloat16)
    found = graded(linear.times_transposed, x, y)
    exact = graded(lambda x, y: x @ y.mT, x.double(), y.double())
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)


def test_nothing_but_bf16_on_a_cpu_takes_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "BF16_IS_SLOW", True)
    monkeypatch.setattr(linear, "_InFp32", None)
    linear.linear(torch.randn(16, 5), torch.randn(2, 5))
    linear.times_transposed(torch.randn(16, 5), torch.randn(2, 5))
    x, weight = (torch.empty(rows, 5, device="meta", dtype=torch.bfloat16) for rows in (16, 2))
    assert linear.linear(x, weight).is_meta
