"""Which tokens a token sees: its past, within its document and its window."""

from __future__ import annotations

import torch
from torch import Tensor


def past(length: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """Where a query [row] sees a key [column], [length, length] bool: itself and what came before, `window` in all."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (window or length))


def together(documents_BS: Tensor) -> Tensor:
    """Where query and key are of one document, [batch, 1, length, length] bool."""
    return (documents_BS[:, :, None] == documents_BS[:, None, :])[:, None]
