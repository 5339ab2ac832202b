"""torch's compiler, as far as the model asks more of it than torch does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SHAPES = 64  # lengths of sequences (train.seq_len_warmup), each in training and in evaluation


def compile_forward(module: nn.Module) -> None:
    """Compile what a module computes, without its hooks: those of ZeRO 3, which gather weights, would break a graph."""
    module.forward = torch.compile(module.forward, **for_each_shape())


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Within, all modules are as they were before `compile_forward`, so that the hooks of their parts are called."""
    own: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in model.modules()}
    compiled = {module: call for module, call in own.items() if hasattr(call, "_torchdynamo_orig_callable")}
    for module in compiled:
        del module.forward
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def for_each_shape() -> dict[str, Any]:
    """Options of torch.compile for a kernel of its own for each shape, of which there may be many.

    After 8 of them torch would go on uncompiled, and say so in a log alone.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # torch 2.13, where the setting is a thread's
        return {"dynamic": False, "recompile_limit": _SHAPES}
    import torch._dynamo.config as limits  # seconds, for those who compile

    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    return {"dynamic": False}
