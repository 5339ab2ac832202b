"""The interface of attention backends."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Backend(Protocol):
    """Mixes values by attention.

    Queries are [batch, n_heads, length, head_size], keys and values
    [batch, kv_heads, length, head_size].
    """

    @property
    def constant(self) -> Tensor | None:
        """A buffer of the model, moved and rounded with it; None if none is needed."""

    def shared(self, constant: Any, tokens_BS: Tensor, documents_BS: Tensor | None) -> Any:
        """What all layers of one pass share: masks and biases."""

    def attend(self, q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, shared: Any) -> Tensor:
        """The values mixed, in the shape of the queries."""
