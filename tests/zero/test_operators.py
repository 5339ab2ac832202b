"""A rank finds the operator that was compiled for its GPU, in whatever list of architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.storage import operators


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_LLM_CACHE", str(tmp_path))


def built(architecture: str) -> Path:
    library = operators.library("fused_lion", architecture)
    library.parent.mkdir(parents=True)
    library.touch()
    return library


@pytest.mark.parametrize("architecture", ["sm8.0_9.0", "sm9.0+PTX", "sm9.0"])
def test_a_list_that_has_it_will_do(architecture: str) -> None:
    built("sm8.0")
    library = built(architecture)
    assert operators.built_for("fused_lion", "9.0") == library


@pytest.mark.parametrize("architecture", ["sm8.0_8.6", "sm9.0a"])
def test_one_that_has_it_not_will_not(architecture: str) -> None:
    built(architecture)
    assert operators.built_for("fused_lion", "9.0") is None
    assert operators.built_for("fused_adam", "8.0") is None
