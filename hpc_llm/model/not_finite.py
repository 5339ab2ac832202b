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
    """Names of modules whose outputs, and of modules whose gradients, are not finite, each in the
    order of its pass.

    The first is the origin. In the backward pass that is the last one in forward order.
    """

    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)


@contextmanager
def not_finite(model: nn.Module) -> Iterator[NotFinite]:
    """What forward passes and `gradients_of` inside the block find.

    Compiled modules run uncompiled, since otherwise no hook would be called; compiled functions
    that they call stay compiled: otherwise FlexAttention would hold all scores.
    """
    found = NotFinite()
    hooks = [hook for name, module in model.named_modules() for hook in _watch(name, module, found)]
    try:
        with uncompiled(model):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def gradients_of(loss: Tensor, model: nn.Module) -> None:
    """A backward pass only for its hooks: nothing is added to any gradient, and none of them is
    kept.
    """
    torch.autograd.grad(
        loss, [one for one in model.parameters() if one.requires_grad], allow_unused=True
    )


def _watch(name: str, module: nn.Module, found: NotFinite) -> Iterator[RemovableHandle]:
    """Hooks on one module: on its outputs and gradients if it has no submodules, and on its own
    parameters.
    """
    if not any(module.children()):
        yield module.register_forward_hook(
            lambda _, given, output: _note(name, [output], found.forward)
        )
        yield module.register_full_backward_hook(
            lambda _, inwards, outwards: _note(name, [*outwards, *inwards], found.backward)
        )

    def look(gradient: Tensor) -> Tensor:
        _note(name, [gradient], found.backward)
        return gradient.new_zeros(()).expand_as(
            gradient
        )  # takes no memory: all gradients at once would not fit

    yield from (
        one.register_hook(look) for one in module.parameters(recurse=False) if one.requires_grad
    )


def _note(name: str, values: Iterable[Any], names: list[str]) -> None:
    tensors = [one for one in values if isinstance(one, Tensor) and one.is_floating_point()]
    if any(not bool(torch.isfinite(one).all()) for one in tensors):
        names.append(name)
