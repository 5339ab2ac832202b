"""The table of optimizers: what else names them agrees with it, and no other name is taken."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from hpc_llm.config.building import field_types
from hpc_llm.config.errors import InputError
from hpc_llm.config.optimizers import OPTIMIZERS, ZERO_STAGES, optimizer, using
from hpc_llm.config.schema import OptimConfig
from hpc_llm.planning.parameters import checkpoint_bytes
from hpc_llm.storage import operators
from tests.configs import make_config, presets


def test_the_schema_and_the_presets_name_the_rows_of_the_table() -> None:
    assert list(get_args(field_types(OptimConfig)["name"])) == list(OPTIMIZERS)
    assert presets("optim") == sorted(OPTIMIZERS)
    for name in OPTIMIZERS:
        assert make_config(f"optim={name}", *_data_of(name)).optim.name == name


def _data_of(name: str) -> list[str]:
    """Words without which a preset does not run on the default machine."""
    return ["train.zero_stage=1"] if OPTIMIZERS[name].offloaded else []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_speak_of_keys_stages_and_optimizers_that_exist(name: str) -> None:
    row = optimizer(name)
    assert row.keys <= {field.name for field in dataclasses.fields(OptimConfig)}
    assert set(row.zero_stages) <= set(ZERO_STAGES)
    assert all(name in using(key) for key in row.keys)
    for other in (row.fallback, row.offloaded_twin):
        assert other is None or other in OPTIMIZERS
    if row.offloaded_twin is not None:
        assert not row.offloaded
        assert optimizer(row.offloaded_twin).offloaded


def test_an_unknown_name_is_an_error_wherever_the_table_is_read() -> None:
    message = r"optim\.name=soap: no such optimizer; allowed: .*torch_adam"
    with pytest.raises(InputError, match=message):
        optimizer("soap")
    with pytest.raises(InputError, match=message):
        operators.needed("soap", "cuda")
    with pytest.raises(InputError, match=message):
        checkpoint_bytes(1000, "soap", "bf16", 1)
    with pytest.raises(InputError, match=message):
        _ = OptimConfig(name="soap", lr=1e-3).offloaded


def test_the_kernel_is_that_of_the_device() -> None:
    assert operators.needed("fused_lion", "cuda") == "fused_lion"
    assert operators.needed("fused_lion", "cpu") == "cpu_lion"
    assert operators.needed("torch_adam", "cuda") is None
