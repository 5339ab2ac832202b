"""Where values are first not finite in a forward and a backward pass: a divergence's origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpc_llm.model.compiler import uncompiled


@dataclass(frozen=True)
class NotFinite:
    """Names of modules whose outputs, and of modules whose gradients, are not finite.

    Each list is in the order of its pass, so the first is the origin. In the backward pass that is
    the last one in forward order.
    """

    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)


@contextmanager
def not_finite(model: nn.Module) -> Iterator[NotFinite]:
    """What forward passes and `gradients_of` inside the block find.

    Compiled modules run uncompiled, since otherwise no hook would be called; compiled functions
    that they call stay compiled: otherwise FlexAttention would hold all scores.
    """
    seen = NotFinite()
    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        hooks += _watch(name, module, seen)
    try:
        with uncompiled(model):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gradients_of(loss: Tensor, model: nn.Module) -> None:
    """A backward pass only for its hooks.

    Nothing is added to any gradient, and none of them is kept.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, trained, allow_unused=True)


def _watch(name: str, module: nn.Module, seen: NotFinite) -> Iterator[RemovableHandle]:
    """Hooks on one module: on its own parameters, and without submodules on what it computes."""
    if not any(module.children()):
        yield module.register_forward_hook(
            lambda _, given, output: _note(name, [output], seen.forward)
        )
        yield module.register_full_backward_hook(
            lambda _, inwards, outwards: _note(name, [*outwards, *inwards], seen.backward)
        )

    def look(gradient: Tensor) -> Tensor:
        _note(name, [gradient], seen.backward)
        # This takes no memory: all gradients at once would not fit.
        return gradient.new_zeros(()).expand_as(gradient)

    for parameter in module.parameters(recurse=False):
        if parameter.requires_grad:
            yield parameter.register_hook(look)


def _note(name: str, values: Iterable[Any], names: list[str]) -> None:
    if any(_is_not_finite(value) for value in values):
        names.append(name)


def _is_not_finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return not bool(torch.isfinite(value).all())
