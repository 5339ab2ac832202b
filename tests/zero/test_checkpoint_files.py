"""What DeepSpeed swallows or hides while it saves is told by all ranks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.checkpoint.errors import SaveFailed


@pytest.mark.parametrize(
    ("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)]
)
def test_a_folder_that_cannot_be_made_is_why_the_save_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, full: bool
) -> None:
    """With no inodes left the folder cannot be made, and its files are then "not found"."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo

    from hpc_llm.zero.checkpoint_files import ManifestCheckpointEngine

    def refuse(path: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
        raise OSError(number, os.strerror(number), str(path))

    engine = ManifestCheckpointEngine(0, lambda mine: [mine], lambda folder, files: None)
    info = CheckpointCommitInfo(tag="step-00000001", save_dir=str(tmp_path), save_latest=False)
    monkeypatch.setattr(os, "makedirs", refuse)
    engine.makedirs(str(tmp_path / info.tag), exist_ok=True)
    engine.create(info)
    engine.save({"a": 1}, str(tmp_path / info.tag / "weights.pt"))
    with pytest.raises(SaveFailed, match=f"rank 0: {os.strerror(number)}") as failed:
        engine.commit(info)
    assert failed.value.full is full
