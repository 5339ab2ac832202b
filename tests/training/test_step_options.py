"""Ways to compute a step change no loss: compiled blocks, logits in chunks, ALiBi folded into the
heads.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.zero.engine_ranks import Case, trained

pytestmark = pytest.mark.slow

BASE = ("fp32", 2, 3)  # ZeRO stage 2, three passes of which the last is short
WAYS: dict[str, Case] = {
    "plain": BASE,
    "chunks": (*BASE, "train.loss_chunk=20"),
    "folded": (*BASE, "train.attention=folded"),
    "chunks, ZeRO 3": ("fp32", 3, 3, "train.loss_chunk=20"),
    "chunks, ZeRO 3, untied": ("fp32", 3, 3, "train.loss_chunk=20", "model.tied=false"),
    "untied": (*BASE, "model.tied=false"),
    "compiled": (*BASE, "train.compile=true"),
    "compiled, checkpointed": (*BASE, "train.compile=true", "train.activation_checkpointing=true"),
    "compiled, ZeRO 1": ("fp32", 1, 3, "train.compile=true"),
    "compiled, ZeRO 3": ("fp32", 3, 3, "train.compile=true"),
    "llama": (*BASE, "model=llama-tiny", "model.n_kv_heads=1", "model.d_ffn=null"),
    "llama, compiled": (
        *BASE,
        "model=llama-tiny",
        "model.n_kv_heads=1",
        "model.d_ffn=null",
        "train.compile=true",
    ),
}
LIKE = {
    "chunks, ZeRO 3, untied": "untied",
    "llama, compiled": "llama",
}  # the others are like "plain"
BASELINES = {"plain", *LIKE.values()}


@cache
def losses() -> dict[Case, list[list[float]]]:
    return trained(1, list(WAYS.values()))


@pytest.mark.parametrize("way", [name for name in WAYS if name not in BASELINES])
def test_losses_and_gradient_norms_are_those_of_the_plain_step(way: str) -> None:
    found, plain = (torch.tensor(losses()[WAYS[name]]) for name in (way, LIKE.get(way, "plain")))
    torch.testing.assert_close(found, plain, rtol=2e-5, atol=0)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_at_zero_3_a_block_is_one_graph_for_all_of_them(checkpointed: bool) -> None:
    """In a process of its own: zero.Init changes torch.Tensor, which the compiler must not find
    so.
    """
    case = (
        "bf16",
        3,
        4,
        "train.compile=true",
        f"train.activation_checkpointing={str(checkpointed).lower()}",
    )
    assert trained(1, [case], "graphs")[case] == [[2, {}]] * 4  # the block and the loss


IN_BF16: list[Case] = [("bf16", 2, 2), ("bf16", 2, 2, "train.compile=true")]


def test_compiled_blocks_on_two_ranks_in_bf16_differ_by_rounding() -> None:
    """A fused kernel rounds less often; the tolerances are those of test_exact_step."""
    plain, compiled = map(torch.tensor, trained(2, IN_BF16).values())
    torch.testing.assert_close(compiled[:, 0], plain[:, 0], rtol=2e-3, atol=0)
    torch.testing.assert_close(compiled[:, 1], plain[:, 1], rtol=1.5e-2, atol=0)
