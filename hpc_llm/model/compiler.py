"""torch's compiler, as far as the model asks more of it than torch does."""

from __future__ import annotations

import inspect
from typing import Any

import torch

_SHAPES = 64  # lengths of sequences (train.seq_len_warmup), each in training and in evaluation


def for_each_shape() -> dict[str, Any]:
    """Options of torch.compile for a kernel of its own for each shape, of which there may be many.

    After 8 of them torch would go on uncompiled, and say so in a log alone.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # torch 2.13, where the setting is a thread's
        return {"dynamic": False, "recompile_limit": _SHAPES}
    import torch._dynamo.config as limits  # seconds, for those who compile

    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    return {"dynamic": False}
