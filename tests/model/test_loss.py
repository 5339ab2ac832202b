"""The loss is a sum of cross-entropies, in chunks as in one piece; what else the gradient holds is
not reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.init import initialise
from hpc_llm.model.loss import IGNORED, readout, summed_cross_entropy, summed_loss
from hpc_llm.model.transformer import Transformer
from tests.configs import make_config

TOKENS = 22
WIDTH = 16
VOCAB = 128
READOUTS = {
    "plain": (),
    "scaled": ("model.logit_scale=0.25",),
    "capped": ("model.logit_soft_cap=2.0",),
    "all": ("model.logit_scale=0.5", "model.logit_soft_cap=3.0", "model.z_loss=0.01"),
}


def config_of(name: str) -> ModelConfig:
    return make_config(f"model.vocab_size={VOCAB}", *READOUTS[name]).model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, output matrix, targets of which some do not count."""
    torch.manual_seed(0)
    targets = torch.randint(0, VOCAB, (TOKENS,))
    targets[3:9] = IGNORED
    return (
        torch.randn(TOKENS, WIDTH, requires_grad=True),
        torch.randn(VOCAB, WIDTH, requires_grad=True),
        targets,
    )


def test_ignored_targets_do_not_count() -> None:
    logits = torch.randn(10, 11)
    targets = torch.randint(0, 11, (10,))
    targets[2] = IGNORED
    terms = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    torch.testing.assert_close(
        summed_cross_entropy(logits, targets), (terms * (targets != IGNORED)).sum()
    )
    assert summed_cross_entropy(logits, torch.full((10,), IGNORED)).item() == 0


@pytest.mark.parametrize("chunk", [1, 5, 11, 21, 22, 100])
@pytest.mark.parametrize("name", READOUTS)
def test_chunks_give_the_loss_and_the_gradients_of_one_piece(name: str, chunk: int) -> None:
    config = config_of(name)
    (here, weight, targets) = inputs()
    (there, other, _) = inputs()
    found = summed_loss(here, weight, targets, config, chunk)
    wanted = summed_loss(there, other, targets, config, None)
    torch.testing.assert_close(found, wanted)
    (found * 0.37).backward()
    (wanted * 0.37).backward()
    torch.testing.assert_close(here.grad, there.grad)
    torch.testing.assert_close(weight.grad, other.grad)
    with torch.no_grad():
        torch.testing.assert_close(summed_loss(here, weight, targets, config, chunk), wanted)


def test_a_chunk_that_holds_everything_is_one_piece() -> None:
    config = config_of("plain")
    (x, weight, targets) = inputs()
    whole, chunks = (
        summed_loss(x, weight, targets, config, chunk) for chunk in (len(x), len(x) - 1)
    )
    assert type(whole.grad_fn) is type(summed_loss(x, weight, targets, config, None).grad_fn)
    assert type(whole.grad_fn) is not type(chunks.grad_fn)


def test_chunks_in_bf16_lose_no_more_than_one_piece_does() -> None:
    config = config_of("plain")
    (x, weight, targets) = inputs()
    summed_loss(x, weight, targets, config, None).backward()
    errors = []
    for chunk in (None, 4):
        low, matrix = (part.detach().bfloat16().requires_grad_() for part in (x, weight))
        (summed_loss(low, matrix, targets, config, chunk) / 1000).backward()
        assert matrix.grad is not None and weight.grad is not None
        errors.append((matrix.grad.float() * 1000 - weight.grad).norm().item())
    assert errors[1] < 1.2 * errors[0]


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self.elements = max(self.elements, tensor.numel())
        return result


def tensors(result: Any) -> Iterator[Tensor]:
    for item in result if isinstance(result, (tuple, list)) else (result,):
        if isinstance(item, Tensor):
            yield item


def test_chunks_never_hold_all_logits() -> None:
    config = config_of("plain")
    (x, weight, targets) = inputs()
    largest = {}
    for chunk in (None, 4):
        with Largest() as seen:
            summed_loss(x, weight, targets, config, chunk).backward()
        largest[chunk] = seen.elements
    assert largest[None] == TOKENS * VOCAB
    assert largest[4] == max(4 * VOCAB, VOCAB * WIDTH)


def test_z_loss_is_in_the_gradient_and_not_in_the_value() -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 11, requires_grad=True)
    targets = torch.randint(0, 11, (10,))
    targets[0] = IGNORED
    loss = summed_cross_entropy(logits, targets, z_loss=0.1)
    assert loss.item() == summed_cross_entropy(logits, targets).item()
    (gradient,) = torch.autograd.grad(loss, logits)
    written_out = F.cross_entropy(logits[1:], targets[1:], reduction="sum")
    written_out = written_out + 0.1 * logits[1:].exp().sum(-1).log().square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(written_out, logits)[0])


def test_the_models_z_loss_is_in_its_gradients_whatever_the_chunk() -> None:
    tokens, targets = torch.randint(0, VOCAB, (2, 3, 8))
    gradients = {}
    for z_loss, chunk in ((0.0, None), (0.1, None), (0.1, 5)):
        model = Transformer(
            make_config(f"model.vocab_size={VOCAB}", f"model.z_loss={z_loss}").model,
            8,
            loss_chunk=chunk,
        )
        for name, parameter in model.named_parameters():
            initialise(name, parameter, model.config, seed=1)
        model(tokens, targets).backward()
        gradients[z_loss, chunk] = model.wte.weight.grad
    assert (gradients[0.0, None] - gradients[0.1, None]).abs().max() > 0.01
    torch.testing.assert_close(gradients[0.1, None], gradients[0.1, 5])


def test_a_cap_bounds_the_logits_and_a_scale_multiplies_them() -> None:
    x, weight, _ = inputs()
    plain = F.linear(x, weight)
    assert plain.abs().max() > 4
    torch.testing.assert_close(readout(x, weight, config_of("scaled")), plain / 4)
    torch.testing.assert_close(readout(x, weight, config_of("capped")), 2 * torch.tanh(plain / 2))
