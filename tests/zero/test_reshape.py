"""A checkpoint for another number of ranks; tests/chaos/test_elastic.py trains on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deepspeed.checkpoint import ds_to_universal

from hpc_llm.checkpoint import manifest
from hpc_llm.zero import reshape


def test_rank_0_gives_signs_of_life_while_it_reshapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model of 70 billion parameters it takes longer than the ranks may be silent."""
    beats: list[int] = []

    def converted(words: Any) -> None:
        for part in (1, 2):
            ds_to_universal._do_parallel_work(beats.append, [part, part], words.num_extract_workers)

    monkeypatch.setattr(ds_to_universal, "main", converted)
    folder = manifest.folder_of(tmp_path, 10)
    with reshape.universal(folder, 0, lambda value: [value], lambda: beats.append(0)) as whole:
        assert whole == tmp_path / "step-00000010.reshaped"
    first = beats.index(1)
    second = beats.index(2)
    assert 0 in beats[:first]
    assert 0 in beats[first:second]
    assert 0 in beats[second:]
