"""A few named arrays in one file that is written atomically."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write beside `path`, fsync, rename over it: two processes that write the same at once do no
    harm.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays written by `write_arrays`: all, or those with the given names."""
    with np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in names or loaded.files}
