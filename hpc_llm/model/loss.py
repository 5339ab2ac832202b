"""Cross-entropy as a sum over target tokens; the caller divides by their global number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.compiler import for_each_shape
from hpc_llm.model.linear import linear

IGNORED = -100  # a target that does not count


def readout(x_D: Tensor, weight_VD: Tensor, config: ModelConfig) -> Tensor:
    """Logits of hidden states: [..., d_model] → [..., vocab_size].

    Scaled and capped as the model says.
    """
    logits = linear(x_D, weight_VD)
    if config.logit_scale != 1.0:
        logits = logits * config.logit_scale
    if config.logit_soft_cap is not None:
        logits = config.logit_soft_cap * torch.tanh(logits / config.logit_soft_cap)
    return logits


def summed_cross_entropy(logits_NV: Tensor, targets_N: Tensor, z_loss: float = 0.0) -> Tensor:
    """Sum of -log p(target) in nats over all targets except IGNORED, an fp32 scalar.

    It is 0 if all are ignored.
    Only the gradient includes that of z_loss · log²Z (PaLM, arXiv 2204.02311, section 5): the
    reported value stays a cross-entropy, comparable with runs without it.
    """
    logits_NV = logits_NV.float()
    loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    if z_loss:
        log_z = logits_NV.logsumexp(dim=-1).masked_fill(targets_N == IGNORED, 0.0)
        penalty = z_loss * log_z.square().sum()
        loss = loss + (penalty - penalty.detach())
    return loss


def readout_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, config: ModelConfig) -> Tensor:
    """summed_cross_entropy of the readout."""
    return summed_cross_entropy(readout(x_ND, weight_VD, config), targets_N, config.z_loss)


@functools.cache
def compiled_readout_loss() -> Callable[..., Tensor]:
    """readout_loss in one kernel apart from its matrix products.

    No fp32 copy of the logits is ever stored.
    """
    return torch.compile(readout_loss, **for_each_shape())


def summed_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    config: ModelConfig,
    chunk: int | None,
    compiled: bool = False,
) -> Tensor:
    """readout_loss, with `chunk` in parts: logits of at most that many tokens exist at once."""
    loss_of = compiled_readout_loss() if compiled else readout_loss
    if chunk is None or chunk >= len(x_ND):
        return loss_of(x_ND, weight_VD, targets_N, config)
    if torch.is_grad_enabled():
        return _Chunked.apply(x_ND, weight_VD, targets_N, config, chunk, loss_of)
    parts = zip(x_ND.split(chunk), targets_N.split(chunk), strict=True)
    return torch.stack([loss_of(x, weight_VD, t, config) for x, t in parts]).sum()


class _Chunked(torch.autograd.Function):
    """Computes each chunk's gradient while its logits exist.

    Nothing is computed twice, and no logits are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        config: ModelConfig,
        chunk: int,
        loss_of: Callable[..., Tensor],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        x_grads = []
        weight_grad = None
        weight = weight_VD.detach().requires_grad_()
        for part, targets in zip(x_ND.split(chunk), targets_N.split(chunk), strict=True):
            x = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = loss_of(x, weight, targets, config)
            x_grad, part_grad = torch.autograd.grad(loss, (x, weight))
            x_grads.append(x_grad)
            # A sum over chunks, in fp32: bf16 would lose small terms.
            if weight_grad is None:
                weight_grad = part_grad.float()
            else:
                weight_grad.add_(part_grad)
            total += loss.detach()
        ctx.save_for_backward(torch.cat(x_grads), weight_grad)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, weight_grad = ctx.saved_tensors
        # In fp32, as the plain loss scales its logits' gradient: `grad` in bf16 would be off by up
        # to 0.4 %. In place: a second matrix of the vocabulary in fp32 would be the largest thing
        # of all.
        return (
            (x_grad.float() * grad).to(x_grad.dtype),
            weight_grad.mul_(grad).to(ctx.weight_dtype),
            *[None] * 4,
        )
