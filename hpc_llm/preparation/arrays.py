"""A few named arrays in one file that is written atomically."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpc_llm.storage.files import replacing


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write `path` atomically: two processes that write the same at once do no harm."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays written by `write_arrays`: all, or those with the given names."""
    with np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in names or loaded.files}
