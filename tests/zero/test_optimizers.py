"""Optimizers are made by their names in the table, and by no other."""

from __future__ import annotations

import pytest
import torch

from hpc_llm.config.errors import InputError
from hpc_llm.config.optimizers import OPTIMIZERS
from hpc_llm.config.schema import OptimConfig
from hpc_llm.zero import optimizers

NAMED = [("weight", torch.nn.Parameter(torch.zeros(4, 4)))]


def test_a_name_without_a_row_trains_nothing() -> None:
    with pytest.raises(InputError, match=r"optim\.name=soap: no such optimizer; allowed: .*muon"):
        optimizers.make(OptimConfig(name="soap", lr=1e-3), NAMED, "cpu")


def test_every_row_has_its_constructor_on_every_device() -> None:
    needed = {row.constructor(device) for row in OPTIMIZERS.values() for device in ("cuda", "cpu")}
    fallbacks = {row.fallback for row in OPTIMIZERS.values() if row.fallback}
    assert needed | fallbacks == set(optimizers.CONSTRUCTORS)


def test_torch_adam_is_torchs_own() -> None:
    made = optimizers.make(OptimConfig(name="torch_adam", lr=1e-3), NAMED, "cpu")
    assert type(made) is torch.optim.AdamW
    assert made.defaults["fused"]
