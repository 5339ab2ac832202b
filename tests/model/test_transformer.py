"""The model against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from hpc_llm.model.init import initialise
from hpc_llm.model.loss import IGNORED
from hpc_llm.model.positions import alibi_slopes
from hpc_llm.model.transformer import Transformer
from tests.configs import make_config

CONFIG = make_config(
    "model.d_model=48",
    "model.n_heads=3",
    "model.n_layers=2",
    "model.vocab_size=128",
    "model.max_seq_len=32",
).model
SEQ_LEN = 16


def model(activation_checkpointing: bool = False) -> Transformer:
    made = Transformer(CONFIG, SEQ_LEN, activation_checkpointing)
    for name, parameter in made.named_parameters():
        initialise(name, parameter, CONFIG, seed=1)
    return made


def test_slopes_of_a_power_of_two_are_the_papers_geometric_sequence() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_slopes_of_other_head_counts_take_every_second_of_the_next_power_of_two() -> None:
    whole = alibi_slopes(16).tolist()
    assert alibi_slopes(12).tolist() == (whole[1::2] + whole[::2])[:12]


def test_no_position_sees_what_comes_after_it() -> None:
    made = model()
    tokens = torch.randint(0, CONFIG.vocab_size, (1, SEQ_LEN))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % CONFIG.vocab_size
    torch.testing.assert_close(made.logits(tokens)[:, :9], made.logits(changed)[:, :9])
    assert not torch.allclose(made.logits(tokens)[:, 9:], made.logits(changed)[:, 9:])


def test_activation_checkpointing_changes_no_gradient() -> None:
    tokens = torch.randint(0, CONFIG.vocab_size, (2, SEQ_LEN))
    kept = model()
    recomputed = model(activation_checkpointing=True)
    for made in (kept, recomputed):
        made(tokens, tokens).backward()
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)


PIECES = [5, 1, 7, 3]  # documents of a packed row; the last is padding


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, targets and documents, [2, SEQ_LEN]: both rows of PIECES, in opposite order."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, CONFIG.vocab_size, (2, 2, SEQ_LEN))
    numbers = torch.repeat_interleave(torch.tensor([1, 2, 3, 0]), torch.tensor(PIECES))
    documents = torch.stack([numbers, numbers.flip(0)]).int()
    return tokens, targets.masked_fill(documents == 0, IGNORED), documents


def test_a_packed_document_is_seen_as_if_it_stood_alone() -> None:
    tokens, targets, documents = packed()
    together = model()
    alone = model()
    logits = together.logits(tokens, documents)
    together(tokens, targets, documents).backward()
    for row, number in [(row, number) for row in range(2) for number in (1, 2, 3)]:
        own = documents[row] == number
        torch.testing.assert_close(alone.logits(tokens[row, own][None])[0], logits[row, own])
        alone(tokens[row, own][None], targets[row, own][None]).backward()
    for one, other in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_without_document_masks_a_document_would_see_the_one_before_it() -> None:
    tokens, _, documents = packed()
    assert not torch.allclose(model().logits(tokens), model().logits(tokens, documents))


def test_one_document_a_row_gives_the_bits_of_none() -> None:
    tokens, _, documents = packed()
    assert torch.equal(model().logits(tokens), model().logits(tokens, torch.ones_like(documents)))


def test_documents_and_activation_checkpointing_go_together() -> None:
    kept = model()
    recomputed = model(activation_checkpointing=True)
    for made in (kept, recomputed):
        made(*packed()).backward()
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True)
    )


def test_shorter_sequences_are_the_beginning_of_long_ones() -> None:
    tokens, _, _ = packed()
    torch.testing.assert_close(model().logits(tokens[:, :6]), model().logits(tokens)[:, :6])


@pytest.mark.parametrize("name", ["wte.weight", "blocks.0.ffn.down_proj.weight"])
def test_initial_weights_depend_on_seed_and_name_alone(name: str) -> None:
    first, again, other = (torch.empty(64, 64) for _ in range(3))
    initialise(name, first, CONFIG, seed=1)
    initialise(name, again, CONFIG, seed=1)
    initialise(name, other, CONFIG, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    wanted = CONFIG.init_std / (math.sqrt(2 * CONFIG.n_layers) if "down_proj" in name else 1)
    assert first.std().item() == pytest.approx(wanted, rel=0.1)
