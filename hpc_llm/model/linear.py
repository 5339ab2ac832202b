"""Matrix products with weights, in fp32 on AMD's processors through oneDNN.

There torch's own go to MKL, which keeps to AVX2 on a processor that is not Intel's: on an EPYC with AVX-512 a product
of oneDNN takes less than half the time. torch reaches oneDNN in fp32 only by a convolution: over one pixel a row.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """torch's, but for how it is computed."""

    def forward(self, input: Tensor) -> Tensor:
        product = linear(input, self.weight)
        return product if self.bias is None else product + self.bias


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ: [..., k] and [n, k] → [..., n]."""
    if x.is_cpu and x.dtype == torch.float32 and mkl_is_slow():
        product: Tensor = _Product.apply(x.flatten(0, -2), weight)
        return product.unflatten(0, x.shape[:-1])
    return F.linear(x, weight)


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


class _Product(torch.autograd.Function):
    """It saves the very parameter, not a view: ZeRO 3 takes its numbers away between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
        ctx.save_for_backward(x_NK, weight_MK)
        return _rows(F.conv2d(_pixels(x_NK), weight_MK[:, :, None, None]))

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, weight_MK = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad, False]
        grad, x, weight = _pixels(grad_NM.contiguous()), _pixels(x_NK), weight_MK[:, :, None, None]
        x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
        )
        return _rows(x_grad) if wanted[0] else None, weight_grad[:, :, 0, 0] if wanted[1] else None


def _pixels(x_NK: Tensor) -> Tensor:
    """[1, k, 1, n], channels last: the same memory."""
    return x_NK[None, None].permute(0, 3, 1, 2)


def _rows(x_1K1N: Tensor) -> Tensor:
    return x_1K1N.permute(0, 2, 3, 1)[0, 0]
