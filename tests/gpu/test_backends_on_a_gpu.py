"""The backends' own kernels are the formula, at lengths that fill no block, with and without
documents.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends import make_backend
from hpc_llm.model.masks import past, together
from hpc_llm.model.positions import alibi_slopes
from tests.configs import make_config

LENGTH = 700
SHAPES = {
    "alibi-64": ("model.d_model=192", "model.n_heads=3"),
    "alibi-128-gqa": ("model.d_model=512", "model.n_heads=4", "model.n_kv_heads=2"),
    "alibi-window": ("model.d_model=192", "model.n_heads=3", "model.sliding_window=100"),
    "none-gqa": (
        "model.d_model=256",
        "model.n_heads=4",
        "model.n_kv_heads=1",
        "model.positions=none",
    ),
}
CASES = [
    (name, shape)
    for name in ("sdpa", "folded", "flex")
    for shape in SHAPES
    if name != "folded" or shape.startswith("alibi")
]
TOLERANCE = 0.02  # bf16: 2^-8 of each number, and of the bias where one is stored


def formula(
    q: Tensor, k: Tensor, v: Tensor, config: ModelConfig, documents: Tensor | None
) -> Tensor:
    """In fp64."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(groups, dim=1) for x in (k, v))
    place = torch.arange(LENGTH, device=q.device)
    scores = q @ k.mT / config.head_size**0.5
    if config.positions == "alibi":
        slopes = alibi_slopes(config.n_heads, config.alibi_bias_max).double().to(q.device)
        scores = scores + slopes[:, None, None] * (place[None, :] - place[:, None])
    seen = past(LENGTH, config.sliding_window, q.device)
    seen = seen if documents is None else seen & together(documents)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_forward_and_backward_are_the_formulas(name: str, shape: str, packed: bool) -> None:
    config = make_config(*SHAPES[shape]).model
    torch.manual_seed(0)
    heads = (config.n_heads, config.kv_heads, config.kv_heads)
    here = [
        torch.randn(2, n, LENGTH, config.head_size, device="cuda").bfloat16().requires_grad_()
        for n in heads
    ]
    there = [x.detach().clone().requires_grad_() for x in here]
    sizes = torch.tensor([[300, 390, 10], [1, 127, 572]], device="cuda")
    numbers = torch.arange(3, device="cuda", dtype=torch.int32)
    documents = torch.stack([numbers.repeat_interleave(row) for row in sizes]) if packed else None
    backend = make_backend(name, config, LENGTH)
    constant = backend.constant
    if constant is not None:
        constant = constant.cuda().to(
            torch.bfloat16 if constant.is_floating_point() else constant.dtype
        )
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64, device="cuda")
    found = backend.attend(*here, backend.shared(constant, tokens, documents))
    wanted = formula(*there, config, documents)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    for one, other in zip(
        [found, *(x.grad for x in here)], [wanted, *(x.grad for x in there)], strict=True
    ):
        assert one is not None and other is not None
        assert (one.double() - other.double()).norm() <= TOLERANCE * other.double().norm()
