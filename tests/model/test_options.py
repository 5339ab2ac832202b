"""Every option of the model does what it says, trains, and goes together with documents and
checkpointing.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.model.init import initialise
from hpc_llm.model.norms import make_norm
from hpc_llm.model.positions import places, rotate, rotation
from hpc_llm.model.transformer import Transformer
from tests.configs import make_config

LENGTH = 20
BASE = (
    "model.d_model=48",
    "model.n_heads=6",
    "model.n_layers=2",
    "model.vocab_size=128",
    "model.max_seq_len=32",
)
OPTIONS = [
    "model.positions=rope",
    "model.positions=learned",
    "model.positions=none",
    "model.alibi_bias_max=16",
    "model.norm=rmsnorm",
    "model.norm_eps=0.5",
    "model.ffn=swiglu",
    "model.d_ffn=56",
    "model.n_kv_heads=2",
    "model.n_kv_heads=1",
    "model.bias=true",
    "model.tied=false",
    "model.qk_ln=true",
    "model.clip_qkv=0.01",
    "model.sliding_window=4",
    "model.logit_scale=0.5",
    "model.logit_soft_cap=0.1",
    "model.scale_residual_init=false",
    "model.init_std=0.01",
]


def model(
    *words: str, checkpointing: bool = False, attention: str = "sdpa", chunk: int | None = None
) -> Transformer:
    config = make_config(*BASE, *words).model
    made = Transformer(config, LENGTH, checkpointing, attention, chunk)
    for name, parameter in made.named_parameters():
        initialise(name, parameter, config, seed=1)
    return made


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 128, (2, LENGTH)), torch.randint(0, 128, (2, LENGTH))


def documents() -> Tensor:
    rows = [[7, 10, 3], [12, 5, 3]]
    return torch.stack(
        [torch.repeat_interleave(torch.tensor([1, 2, 0]), torch.tensor(sizes)) for sizes in rows]
    ).int()


@pytest.mark.parametrize("word", OPTIONS)
def test_an_option_has_an_effect(word: str) -> None:
    made = model(word)
    with torch.no_grad():  # biases start at 0
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.1)
    assert not torch.allclose(
        made.logits(batch()[0]), model().logits(batch()[0]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("word", ["", *OPTIONS, "model.z_loss=0.01"])
def test_every_parameter_gets_a_gradient_the_same_with_checkpointing_and_chunks(word: str) -> None:
    tokens, targets = batch()
    kept = model(*filter(None, [word]))
    again = model(*filter(None, [word]), checkpointing=True, chunk=7)
    for made in (kept, again):
        made(tokens, targets, documents()).backward()
    for (name, one), other in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None and one.grad.abs().max() > 0, name
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("word", OPTIONS)
def test_a_packed_document_is_seen_as_if_it_stood_alone(word: str) -> None:
    made = model(word)
    packed = documents()
    (tokens, _) = batch()
    logits = made.logits(tokens, packed)
    for row, number in [(row, number) for row in range(2) for number in (1, 2)]:
        own = packed[row] == number
        torch.testing.assert_close(
            made.logits(tokens[row, own][None])[0], logits[row, own], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("word", OPTIONS)
def test_no_position_sees_what_comes_after_it(word: str) -> None:
    made = model(word)
    (tokens, _) = batch()
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 128
    torch.testing.assert_close(made.logits(tokens)[:, :9], made.logits(changed)[:, :9])


@pytest.mark.parametrize(
    "word", ["model.alibi_bias_max=16", "model.sliding_window=4", "model.n_kv_heads=2"]
)
def test_the_folded_backend_gives_the_model_the_same_numbers(word: str) -> None:
    tokens, targets = batch()
    one = model(word)
    other = model(word, attention="folded")
    for made in (one, other):
        made(tokens, targets, documents()).backward()
    for here, there in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-6)


def test_a_score_of_rotated_vectors_depends_on_their_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8).double()
    angles = rotation(30, 8, 10_000.0, q.device)
    turned = [rotate(x.expand(1, 1, 30, 8).float(), angles)[0, 0] for x in (q, k)]
    scores = turned[0] @ turned[1].T
    torch.testing.assert_close(
        scores.diagonal(-3), scores.diagonal(-3)[:1].expand(27), rtol=1e-4, atol=1e-5
    )
    assert not math.isclose(scores[0, 0].item(), scores[3, 0].item(), rel_tol=1e-2)


def test_places_begin_anew_with_each_document() -> None:
    packed = torch.tensor([[1, 1, 1, 2, 2, 0], [5, 0, 0, 0, 3, 3]])
    assert places(6, packed, packed.device).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]
    assert places(3, None, packed.device).tolist() == [0, 1, 2]


def test_multi_query_attention_is_multi_head_attention_with_equal_heads_of_keys_and_values() -> (
    None
):
    shared = model("model.n_kv_heads=2")
    whole = model()
    for one, other in zip(shared.blocks, whole.blocks, strict=True):
        weight = one.attn.Wqkv.weight.detach()
        q, k, v = weight.split([48, 16, 16])
        k, v = (x.view(2, 1, 8, 48).expand(2, 3, 8, 48).reshape(48, 48) for x in (k, v))
        with torch.no_grad():
            other.attn.Wqkv.weight.copy_(torch.cat([q, k, v]))
    torch.testing.assert_close(shared.logits(batch()[0]), whole.logits(batch()[0]))


@pytest.mark.parametrize("kv_heads", ["null", "2"])
def test_qk_ln_normalises_all_heads_of_queries_and_all_of_keys_together(kv_heads: str) -> None:
    made = (
        model("model.qk_ln=true", f"model.n_kv_heads={kv_heads}", "model.positions=none")
        .blocks[0]
        .attn
    )
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, 48)
    width = 48 if kv_heads == "null" else 16
    q, k, v = F.linear(x, made.Wqkv.weight).split([48, width, width], dim=-1)
    q = F.layer_norm(q, (48,))
    k = F.layer_norm(k, (width,))
    q, k, v = (one.unflatten(-1, (-1, 8)).transpose(1, 2) for one in (q, k, v))
    k, v = (one.repeat_interleave(6 // one.shape[1], dim=1) for one in (k, v))
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    wanted = F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), made.out_proj.weight)
    shared = made._backend.shared(
        made._backend.constant, torch.zeros(2, LENGTH, dtype=torch.int64), None
    )
    torch.testing.assert_close(made(x, shared, None), wanted)


def test_norms_are_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 12) + 3
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    for kind in ("layernorm", "low_precision_layernorm"):
        torch.testing.assert_close(
            make_norm(make_config(f"model.norm={kind}").model, 12)(x), centred
        )
    rms = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(make_norm(make_config("model.norm=rmsnorm").model, 12)(x), rms)


def test_layernorm_in_bf16_has_the_gradients_of_fp32_and_the_low_precision_one_has_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096, 64).bfloat16()
    weights = torch.randn(4096, 64)
    errors = {}
    for kind in ("layernorm", "low_precision_layernorm"):
        norm = make_norm(make_config(f"model.norm={kind}").model, 64).bfloat16()
        exact = make_norm(make_config(f"model.norm={kind}").model, 64)
        here = x.clone().requires_grad_()
        there = x.float().requires_grad_()
        (norm(here).float() * weights).sum().backward()
        (exact(there) * weights).sum().backward()
        assert here.grad is not None and there.grad is not None
        errors[kind] = (norm.weight.grad.float() - exact.weight.grad).abs().max().item()
    assert errors["layernorm"] < errors["low_precision_layernorm"]


def test_biases_start_at_zero_and_norms_at_one() -> None:
    for name, parameter in model("model.bias=true", "model.qk_ln=true").named_parameters():
        if parameter.dim() == 1:
            assert set(parameter.tolist()) == {0.0 if name.endswith("bias") else 1.0}, name


def test_without_scaling_what_writes_into_the_residual_stream_starts_like_the_rest() -> None:
    scaled = model()
    plain = model("model.scale_residual_init=false")
    for part in ("attn.out_proj", "ffn.down_proj"):
        one, other = (made.blocks[0].get_submodule(part).weight for made in (scaled, plain))
        torch.testing.assert_close(one * (2 * 2) ** 0.5, other)
