"""A decoder-only transformer, pre-norm, in the shapes of MPT, Llama and anything in between.

Parameter names are those of Hugging Face's MptForCausalLM below `transformer.`, if it has them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.attention import Attention
from hpc_llm.model.backends import make_backend
from hpc_llm.model.backends.protocol import Backend
from hpc_llm.model.compiler import compile_forward
from hpc_llm.model.feedforward import make_feedforward
from hpc_llm.model.loss import readout, summed_loss
from hpc_llm.model.norms import make_norm
from hpc_llm.model.positions import Rotation, places, rotation


class Block(nn.Module):
    """Attention and feed-forward, each on normalised input and added to the residual stream."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.norm_1 = make_norm(config, config.d_model)
        self.attn = Attention(config, backend)
        self.norm_2 = make_norm(config, config.d_model)
        self.ffn = make_feedforward(config)

    def forward(self, x_BSD: Tensor, shared: Any, angles: Rotation | None) -> Tensor:
        x_BSD = x_BSD + self.attn(self.norm_1(x_BSD), shared, angles)
        return x_BSD + self.ffn(self.norm_2(x_BSD))


class Transformer(nn.Module):
    """Tokens and targets → their summed loss (see model.loss).

    Each is [batch, length] int64, with length ≤ seq_len. With documents, [batch, length] int, each
    document is treated as if it were alone. `attention` names a backend (model.backends);
    `loss_chunk` is the number of tokens whose logits exist at once.
    """

    constant: Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        seq_len: int,
        activation_checkpointing: bool = False,
        attention: str = "sdpa",
        loss_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.loss_chunk = loss_chunk
        self._compiled = False
        self._backend = make_backend(attention, config, seq_len)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe: nn.Embedding | None = None
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config, self._backend) for _ in range(config.n_layers))
        self.norm_f = make_norm(config, config.d_model)
        self.lm_head: nn.Linear | None = None
        if not config.tied:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer("constant", self._backend.constant, persistent=False)

    def forward(
        self, tokens_BS: Tensor, targets_BS: Tensor, documents_BS: Tensor | None = None
    ) -> Tensor:
        x_ND = self.hidden(tokens_BS, documents_BS).flatten(0, 1)
        return summed_loss(
            x_ND,
            self.output_matrix,
            targets_BS.flatten(),
            self.config,
            self.loss_chunk,
            self._compiled,
        )

    def logits(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities of the next token, [batch, length, vocab_size]."""
        return readout(self.hidden(tokens_BS, documents_BS), self.output_matrix, self.config)

    def hidden(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """What the output matrix is applied to, [batch, length, d_model]."""
        length = tokens_BS.shape[1]
        device = tokens_BS.device
        if self.constant is not None and self.constant.is_floating_point():
            # DeepSpeed leaves buffers in fp32.
            self.constant = self.constant.to(self.wte.weight.dtype)
        shared = self._backend.shared(self.constant, tokens_BS, documents_BS)
        angles = None
        if self.config.positions == "rope":  # relative: a document need not begin at 0
            angles = rotation(length, self.config.head_size, self.config.rope_theta, device)
        x_BSD = self.wte(tokens_BS)
        if self.wpe is not None:
            x_BSD = x_BSD + self.wpe(places(length, documents_BS, device))
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BSD = checkpoint(block, x_BSD, shared, angles, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, shared, angles)
        return self.norm_f(x_BSD)

    @property
    def output_matrix(self) -> Tensor:
        """[vocab_size, d_model]; the embedding itself if they are tied."""
        if self.lm_head is None:
            return self.wte.weight
        return self.lm_head.weight

    def compile_parts(self) -> None:
        """Compile one block for all blocks, and the loss.

        A block is quick to compile, and checkpointing stays outside it.
        """
        self._compiled = True
        for block in self.blocks:
            compile_forward(block)
