"""Normalisation before each layer, over the last dimension."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig


class Fp32LayerNorm(nn.LayerNorm):
    """LayerNorm computed in fp32 throughout, and rounded once at the end.

    torch's own works on bf16 inputs and outputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), bias, self.eps
        ).to(x.dtype)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The model's norm over `width` features; RMSNorm (arXiv 1910.07467) never has a bias."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, config.norm_eps)
    kind = Fp32LayerNorm if config.norm == "layernorm" else nn.LayerNorm
    return kind(width, config.norm_eps, bias=config.bias)
