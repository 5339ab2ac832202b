"""Clip gradients, and skip steps whose gradient is not finite, inside torch's fused AdamW.

DeepSpeed's optimizers read the gradient norm on the host before they step: by then the device is
idle, and clipping reads and writes all gradients once more. torch's fused AdamW divides by a
`grad_scale` and leaves weights and state unchanged on `found_inf`, both tensors on the device (made
for torch.amp.GradScaler). Up to ZeRO 2 nothing waits (at 3 DeepSpeed still copies a number to the
device for each parameter group), and a step whose gradient is not finite still does no harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from deepspeed.runtime import bf16_optimizer, utils
from deepspeed.runtime.zero import stage3, stage_1_and_2
from torch import Tensor

_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_
# How DeepSpeed 0.19.8 handles a norm that is not finite: it reads it, and overwrites it with -1
# from the host.
_ON_THE_HOST = {
    "is_invalid_grad_norm": lambda *_, **__: False,
    "mask_nan_or_inf_with_val_inplace": lambda *_, **__: None,
}


def fits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the kernel of `optimizer` does it."""
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])


def install(optimizer: torch.optim.Optimizer, max_norm: float, norm: Callable[[], Tensor]) -> None:
    """Make each step of `optimizer` clip to `max_norm`. norm: of the whole gradient; negative or
    not finite: skip.
    """

    def prepare(*_: object) -> None:
        found = norm().float()
        optimizer.grad_scale = ((found + _EPS) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = (~torch.isfinite(found) | (found < 0)).float()  # type: ignore[attr-defined]

    optimizer.register_step_pre_hook(prepare)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside, DeepSpeed's optimizers step without reading the norm."""
    with contextlib.ExitStack() as patches:
        for module in (utils, bf16_optimizer, stage_1_and_2, stage3):
            for name, instead in _ON_THE_HOST.items():
                if hasattr(module, name):
                    patches.enter_context(mock.patch.object(module, name, instead))
        yield


@contextlib.contextmanager
def left_out(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, steps of `optimizer` do nothing."""
    with mock.patch.object(optimizer, "step", lambda *_, **__: None):
        yield
