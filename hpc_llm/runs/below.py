"""The runs below a root, by looking at its folders. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.runs.layout import CONFIG_FILE, RunLayout


def require_root(root: Path) -> None:
    """InputError unless `root` is a folder that this user may list."""
    try:
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{root}: no such folder; give the run.root of your runs, for example ./runs"
        ) from None
    except PermissionError as error:
        raise InputError(
            f"{root}: cannot be read ({error.strerror}); its owner shares runs with run.group"
        ) from None


def find_runs(root: Path) -> list[RunLayout]:
    """All runs at or below `root`: its own, <root>/<name> and <root>/<sweep>/<name>."""
    names = folders_in(root)
    if names is None:
        return [RunLayout(root)]
    paths: list[str] = []
    for name in names:
        with contextlib.suppress(OSError):
            inside = folders_in(root / name)
            if inside is None:
                paths.append(name)
            else:
                paths += runs_of_sweep(root, name, inside)
    return [RunLayout(root / path) for path in sorted(paths)]


def runs_of_sweep(root: Path, sweep: str, folders: list[str]) -> Iterator[str]:
    """Paths below `root` of the `folders` of a sweep that are runs.

    Those of colleagues who do not share are left out.
    """
    for name in sorted(folders):
        with contextlib.suppress(PermissionError):
            if RunLayout(root / sweep / name).config.exists():
                yield f"{sweep}/{name}"


def folders_in(folder: Path) -> list[str] | None:
    """Names of the folders in `folder` that do not begin with a dot; None if it is a run."""
    names = []
    is_run = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            elif entry.name == CONFIG_FILE:
                is_run = True
    return None if is_run else names
