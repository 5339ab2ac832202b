"""A decoder-only transformer of the MPT family: ALiBi, pre-norm, GELU, no biases, tied embeddings.

Names of parameters are those of Hugging Face's MptForCausalLM below `transformer.`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.attention import Attention, alibi_bias, apart
from hpc_llm.model.loss import summed_cross_entropy


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.expansion_ratio * config.d_model, bias=False)
        self.down_proj = nn.Linear(config.expansion_ratio * config.d_model, config.d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x_BSD)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=False)
        self.attn = Attention(config)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=False)
        self.ffn = FeedForward(config)

    def forward(self, x_BSD: Tensor, bias_BHSS: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attn(self.norm_1(x_BSD), bias_BHSS)
        return x_BSD + self.ffn(self.norm_2(x_BSD))


class Transformer(nn.Module):
    """Tokens and targets, each [batch, length] int64, length ≤ seq_len → summed loss (see model.loss).

    With documents, [batch, length] int, each of them is seen as if it stood alone.
    """

    bias_1HSS: Tensor

    def __init__(self, config: ModelConfig, seq_len: int, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model, bias=False)
        bias = alibi_bias(config.n_heads, seq_len, config.alibi_bias_max)
        self.register_buffer("bias_1HSS", bias, persistent=False)

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        return summed_cross_entropy(self.logits(tokens_BS, documents_BS), targets_BS)

    def logits(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities of the next token, [batch, length, vocab_size]."""
        length = tokens_BS.shape[1]
        bias = self.bias_1HSS[:, :, :length, :length]
        if documents_BS is not None:
            bias = apart(bias, documents_BS)
        x_BSD = self.wte(tokens_BS)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BSD = checkpoint(block, x_BSD, bias, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, bias)
        return F.linear(self.norm_f(x_BSD), self.wte.weight)
