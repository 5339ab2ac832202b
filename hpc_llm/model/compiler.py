"""torch's compiler, as far as the model asks more of it than torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LENGTHS = 32  # of sequences, in training and in evaluation (train.seq_len_warmup)


def compile_for_each_length(function: Callable[..., Any]) -> Any:
    """torch.compile for fixed shapes. After 8 of them torch would go on uncompiled, and say so in a log alone."""
    allow_many_lengths()
    return torch.compile(function, dynamic=False)


def allow_many_lengths() -> None:
    """For what is compiled in place."""
    import torch._dynamo.config as limits  # seconds, for those who compile

    limits.recompile_limit = max(limits.recompile_limit, 2 * _LENGTHS)
