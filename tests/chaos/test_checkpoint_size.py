"""What a checkpoint takes on the disk is what the plan has said: room, notice and the interval of
saves rest on it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.runs.freeze import read_plan
from tests.chaos.local_runs import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all runs of this file: they share data and code."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    ("precision", "stage", "optimizer"),
    [
        ("fp32", 0, "torch_adam"),
        ("fp32", 2, "torch_adam"),
        ("bf16", 1, "cpu_lion"),
        ("bf16", 3, "torch_adam"),
    ],
)
def test_a_checkpoint_is_as_large_as_planned(
    root: Path, precision: str, stage: int, optimizer: str
) -> None:
    words = (f"train.precision={precision}", f"train.zero_stage={stage}", f"optim={optimizer}")
    done = run(
        root, f"{precision}-{stage}", *words, "model.vocab_size=2048", "model.d_model=64"
    )  # headers are small beside that
    assert done.status == 0, done.output
    newest = manifest.read(manifest.folder_of(done.layout.checkpoints, done.last))
    written = sum(entry.bytes for entry in newest.files)
    assert written == pytest.approx(read_plan(done.layout).checkpoint_bytes, rel=0.02)
