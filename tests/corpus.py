"""A small corpus of real text, and the same prepared."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_llm.preparation.pipeline import prepare
from tests.small_data import run_config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 modules of the standard library, 0.4 MB, in two folders."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "more").mkdir()
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    small = [path for path in modules if 1_000 < path.stat().st_size < 25_000][:40]
    for number, path in enumerate(small):
        (folder / ("more" if number % 2 else "") / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, prepared by one process; a tenth is held out."""
    directory = tmp_path_factory.mktemp("prepared") / "data"
    prepare(run_config(source=str(corpus), heldout_fraction=0.1, workers=1), directory)
    return directory


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder by name."""
    return lambda directory: {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
