"""Cross-entropy as a sum over target tokens: whoever divides knows the global number of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a target that does not count


def summed_cross_entropy(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Sum of -log p(target) in nats over all targets but IGNORED; fp32 scalar, 0 where all are ignored."""
    return F.cross_entropy(
        logits_BSV.float().flatten(0, 1), targets_BS.flatten(), ignore_index=IGNORED, reduction="sum"
    )
