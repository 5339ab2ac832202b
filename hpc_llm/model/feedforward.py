"""The feed-forward half of a block.

GELU as in MPT, or SwiGLU (Shazeer, arXiv 2002.05202) as in Llama.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.linear import Linear


class Gelu(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.d_model, config.ffn_size, bias=config.bias)
        self.down_proj = Linear(config.ffn_size, config.d_model, bias=config.bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x_BSD)))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x)).

    Gate and up are one projection, the gate first: every parameter tensor has a cost in ZeRO.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.d_model, 2 * config.ffn_size, bias=config.bias)
        self.down_proj = Linear(config.ffn_size, config.d_model, bias=config.bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_BSD).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def make_feedforward(config: ModelConfig) -> nn.Module:
    """The feed-forward module that the model names."""
    if config.ffn == "swiglu":
        return SwiGlu(config)
    return Gelu(config)
