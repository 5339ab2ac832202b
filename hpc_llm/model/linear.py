"""Matrix products on CPUs, each computed the fastest way; everywhere else they are torch's.

fp32 on AMD: torch's own products use MKL, which stays with AVX2 on processors other than Intel's:
on an EPYC with AVX-512 a oneDNN product takes less than half the time. In fp32 torch uses oneDNN
only for convolutions, so here a product is a convolution over one pixel. It adds up the terms in
turn, MKL in blocks, so its error is larger: 5.0e-7 instead of 2.5e-7 of the result for 768 terms,
6.1e-7 instead of 2.6e-7 for 3,072. Two convolutions over half of the terms each are off by 3.5e-7
and take 5 to 30 % longer; TF32, with which many train, is off by 2.9e-4.

bf16 if oneDNN has no kernel for it (x86 without AVX-512): torch then multiplies in plain loops, at
7 GFLOP/s per core of an EPYC, while MKL reaches 70 in fp32. There, fp32 copies are multiplied and
the result is rounded, just as a bf16 product with fp32 sums would do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The rows are split into this many: with fewer, and one thread, torch convolves without oneDNN.
IMAGES = 16


def _mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
    return (
        amd
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
    )


def _bf16_is_slow() -> bool:
    """Whether oneDNN, or this torch, has no bf16 products for this processor."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or not torch.backends.mkldnn.is_available() or not supported()


MKL_IS_SLOW = _mkl_is_slow()  # evaluated once: torch.compile would trace into a function call
BF16_IS_SLOW = _bf16_is_slow()


class Linear(nn.Linear):
    """torch's Linear, computed differently."""

    def forward(self, input: Tensor) -> Tensor:
        product = linear(input, self.weight)
        if self.bias is None:
            return product
        return product + self.bias


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ: [..., k] and [n, k] → [..., n]."""
    num_rows = x.shape[:-1].numel()
    if (
        MKL_IS_SLOW
        and x.is_cpu
        and x.dtype == torch.float32
        and num_rows > 0
        and num_rows % IMAGES == 0
    ):
        product: Tensor = _Product.apply(x.reshape(num_rows, -1), weight)
        return product.unflatten(0, x.shape[:-1])
    if _rather_in_fp32(x):
        product = _InFp32.apply(x.reshape(num_rows, x.shape[-1]), weight)
        if x.dim() == 1:
            return product[0]
        return product.unflatten(0, x.shape[:-1])
    return F.linear(x, weight)


def times_transposed(x: Tensor, y: Tensor) -> Tensor:
    """x · yᵀ: [..., n, k] and [..., m, k], with the same dimensions before, → [..., n, m]."""
    product: Tensor = _InFp32.apply(x, y) if _rather_in_fp32(x) else x @ y.mT
    return product


def _rather_in_fp32(x: Tensor) -> bool:
    return BF16_IS_SLOW and x.is_cpu and x.dtype == torch.bfloat16


class _InFp32(torch.autograd.Function):
    """Saves its inputs in their own dtype: fp32 copies would double what a step keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return (x.float() @ y.float().mT).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, y) = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad = grad.float()
        x_grad: Tensor | None = None
        y_grad: Tensor | None = None
        if wanted[0]:
            x_grad = (grad @ y.float()).to(x.dtype)
        if wanted[1]:
            y_grad = (grad.mT @ x.float()).to(y.dtype)
        return x_grad, y_grad


class _Product(torch.autograd.Function):
    """Saves the parameter itself, not a view.

    ZeRO 3 frees its values between forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
        ctx.save_for_backward(x_NK, weight_MK)
        return _product(x_NK, weight_MK)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, ...]:
        (x_NK, weight_MK) = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        x_grad: Tensor | None = None
        weight_grad: Tensor | None = None
        if wanted[0]:
            x_grad = _product_input_grad(grad_NM, x_NK, weight_MK)
        if wanted[1]:
            weight_grad = _product_weight_grad(grad_NM, x_NK, weight_MK)
        return x_grad, weight_grad


# Custom operators, which torch.compile leaves as they are: otherwise it would change the layout
# around each product, which would take twice as long.
@torch.library.custom_op("hpc_llm::product", mutates_args=())
def _product(x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return _rows(F.conv2d(_images(x_NK), weight_MK[:, :, None, None]))


@torch.library.custom_op("hpc_llm::product_input_grad", mutates_args=())
def _product_input_grad(grad_NM: Tensor, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return _rows(_gradients(grad_NM, x_NK, weight_MK, [True, False, False])[0])


@torch.library.custom_op("hpc_llm::product_weight_grad", mutates_args=())
def _product_weight_grad(grad_NM: Tensor, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return _gradients(grad_NM, x_NK, weight_MK, [False, True, False])[1][:, :, 0, 0]


@_product.register_fake
def _(x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return x_NK.new_empty(x_NK.shape[0], weight_MK.shape[0])


@_product_input_grad.register_fake
def _(grad_NM: Tensor, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return x_NK.new_empty(x_NK.shape)


@_product_weight_grad.register_fake
def _(grad_NM: Tensor, x_NK: Tensor, weight_MK: Tensor) -> Tensor:
    return weight_MK.new_empty(weight_MK.shape)


def _gradients(
    grad_NM: Tensor, x_NK: Tensor, weight_MK: Tensor, wanted: list[bool]
) -> tuple[Tensor, ...]:
    images = _images(x_NK)
    weight = weight_MK[:, :, None, None]
    grads: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        _images(grad_NM), images, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
    )
    return grads


def _images(x_NK: Tensor) -> Tensor:
    """[images, k, 1, rows of one], channels last: the same memory."""
    return x_NK.contiguous().unflatten(0, (IMAGES, 1, -1)).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)
