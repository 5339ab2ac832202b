"""Products through oneDNN are those of torch, forward and backward, whatever is wanted of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hpc_llm.model import linear
from hpc_llm.model.linear import Linear


@pytest.fixture(autouse=True)
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor the way that is taken on AMD's alone."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "MKL_IS_SLOW", True)


@pytest.mark.parametrize("shape", [(48, 70), (2, 24, 70), (5, 70), (0, 70), (70,)])
@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(shape[-1], 4, bias=bias), torch.nn.Linear(shape[-1], 4, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    found, wanted = ours(x), theirs(y)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_what_needs_no_gradient_gets_none_and_strides_do_not_matter() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(70, 64).t(), torch.randn(4, 70)
    torch.testing.assert_close(linear.linear(x, weight), F.linear(x, weight))
    for tensors in ((x.clone().requires_grad_(), weight), (x, weight.clone().requires_grad_())):
        linear.linear(*tensors).t().contiguous().t().sum().backward()
        wanted = [(one.grad is not None) for one in tensors]
        assert wanted == [one.requires_grad for one in tensors]


def test_it_is_oneDNN_that_computes_fp32_and_torch_the_rest() -> None:
    from torch.profiler import ProfilerActivity, profile

    def operators(dtype: torch.dtype) -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            linear.linear(torch.randn(16, 5, dtype=dtype), torch.randn(2, 5, dtype=dtype))
        return {event.key for event in seen.key_averages()}

    assert "aten::mkldnn_convolution" in operators(torch.float32)
    assert not any("convolution" in name for name in operators(torch.bfloat16) | operators(torch.float64))
