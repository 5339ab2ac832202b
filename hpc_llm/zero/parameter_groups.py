"""Which parameters an optimizer treats alike: what decays, and what Muon orthogonalises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

Named = Sequence[tuple[str, nn.Parameter]]
_TABLES = ("wte.weight", "wpe.weight")  # looked up, not multiplied, even if tied


def parameter_groups(named: Named, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and embeddings do not.

    The groups come in a fixed order, without empty ones. A parameter counts as a matrix by its full
    shape, even if ZeRO 3 holds only a part of it.
    """
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        group = decayed if is_matrix(name, parameter) else rest
        group.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a vector is multiplied by it; an embedding is looked up."""
    full_shape = getattr(parameter, "ds_shape", parameter.shape)  # ds_shape: under ZeRO 3
    return len(full_shape) >= 2 and not name.endswith(_TABLES)


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix inside the model: neither an embedding nor the output matrix."""
    return is_matrix(name, parameter) and not name.endswith("lm_head.weight")
