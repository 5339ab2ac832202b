"""Additions to torch's compiler that the model needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SHAPES = 64  # lengths of sequences (train.seq_len_warmup), each in training and in evaluation


def compile_forward(module: nn.Module) -> None:
    """Compile a module's computation without its hooks: those of ZeRO 3, which gather weights,
    would break graphs.
    """
    module.forward = torch.compile(module.forward, **for_each_shape())


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, all modules are as they were before `compile_forward`, so that the hooks of their
    parts are called.
    """
    own: dict[nn.Module, Any] = {
        module: module.__dict__.get("forward") for module in model.modules()
    }
    compiled = {
        module: call for module, call in own.items() if hasattr(call, "_torchdynamo_orig_callable")
    }
    for module in compiled:
        del module.forward
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def for_each_shape() -> dict[str, Any]:
    """Options of torch.compile for a separate kernel for each shape, of which there may be many.

    After 8 shapes torch would continue uncompiled, and say so only in a log.
    """
    if (
        "recompile_limit" in inspect.signature(torch.compile).parameters
    ):  # torch 2.13, where the setting is a thread's
        return {"dynamic": False, "recompile_limit": _SHAPES}
    import torch._dynamo.config as limits  # takes seconds, so only if something is compiled

    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    return {"dynamic": False}
