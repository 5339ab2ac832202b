"""Clip gradients, and skip steps whose gradient is not finite, inside torch's fused AdamW.

DeepSpeed's optimizers read the gradient norm on the host before they step: by then the device is
idle, and clipping reads and writes all gradients once more. torch's fused AdamW divides by a
`grad_scale` and leaves weights and state unchanged on `found_inf`, both tensors on the device (made
for torch.amp.GradScaler). Up to ZeRO 2 nothing waits (at 3 DeepSpeed still copies a number to the
device for each parameter group), and a step whose gradient is not finite still does no harm.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from deepspeed.runtime import bf16_optimizer, utils
from deepspeed.runtime.zero import stage3, stage_1_and_2
from torch import Tensor

_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_

# Functions that read a norm on the host (and overwrite one that is not finite with -1), each with
# its answer where the norm is not read; the modules that call them, by names of their own.
READS_NORM = {"is_invalid_grad_norm": False, "mask_nan_or_inf_with_val_inplace": None}
READERS = (utils, bf16_optimizer, stage_1_and_2, stage3)
_unread: ContextVar[bool] = ContextVar("norms are not read", default=False)


def fits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the kernel of `optimizer` clips and skips."""
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])


def install(optimizer: torch.optim.Optimizer, max_norm: float, norm: Callable[[], Tensor]) -> None:
    """Make each step of `optimizer` clip to `max_norm`.

    norm: of the whole gradient; the step is skipped where it is negative or not finite.
    """

    def prepare(*_: object) -> None:
        newest = norm().float()
        scale = ((newest + _EPS) / max_norm).clamp(min=1.0)
        skip = (~torch.isfinite(newest) | (newest < 0)).float()
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        optimizer.found_inf = skip  # type: ignore[attr-defined]

    optimizer.register_step_pre_hook(prepare)


def make_norms_skippable() -> None:
    """Make DeepSpeed's functions of `READS_NORM` obey `unchecked`.

    They are wrapped once for the process: replacing them at every pass took 59 µs.
    """
    for module in READERS:
        for name, answer in READS_NORM.items():
            if hasattr(module, name):
                setattr(module, name, _unless_unread(getattr(module, name), answer))


def _unless_unread(read: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    @functools.wraps(read)
    def reading(*values: Any, **named: Any) -> Any:
        if _unread.get():
            return answer
        return read(*values, **named)

    return reading


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside, DeepSpeed's optimizers step without reading the norm."""
    token = _unread.set(True)
    try:
        yield
    finally:
        _unread.reset(token)


@contextlib.contextmanager
def left_out(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, steps of `optimizer` do nothing: an attribute hides the method of its class."""
    optimizer.step = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del optimizer.step
