"""Which tokens a token attends to: its past, within its document and its window."""

from __future__ import annotations

import torch
from torch import Tensor


def past(length: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """Where a query [row] attends to a key [column], [length, length] bool.

    It attends to itself and the past, `window` tokens in all.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (window or length))


def together(documents_BS: Tensor) -> Tensor:
    """Where query and key are in the same document, [batch, 1, length, length] bool."""
    return (documents_BS[:, :, None] == documents_BS[:, None, :])[:, None]
