"""Snapshots of this package's source, <root>/.code/<hash>: what queued and requeued jobs execute.

A snapshot is named by its content. It is compared with its name when a run is submitted and when a
supervisor starts: a scratch file system purges old files, and in a shared root somebody else could
have put one there. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.runs.layout import CODE_FOLDER
from hpc_llm.storage import trust
from hpc_llm.storage.files import write_atomic

PACKAGE = Path(__file__).resolve().parent.parent
_DIGITS = 16


def make(root: Path) -> Path:
    """A copy of this package's source below `root`, one per content.

    One that is there already is compared with the source, and what it lacks is written anew.
    InputError if somebody else could have changed it.
    """
    texts = _sources(PACKAGE)
    folder = home(root) / _digest(texts)
    if not folder.exists():
        _write(folder, texts)
    _require_own(folder)
    for file, text in texts.items():
        target = folder / PACKAGE.name / file
        if not _holds(target, text):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, text)
    return folder


def home(root: Path) -> Path:
    """The folder of this user's snapshots below `root`: in a root of several, one for each."""
    return trust.own_name(root / CODE_FOLDER)


def require_whole(folder: Path) -> None:
    """InputError unless the snapshot `folder` is as it was made, and nobody else can change it."""
    folder = folder.resolve()
    if not folder.parent.name.startswith(CODE_FOLDER):
        return  # a run whose code its user has linked elsewhere
    _require_own(folder)
    if _digest(_sources(folder / PACKAGE.name)) != folder.name:
        raise InputError(
            f"{folder}: is not the code that it was (a purge of old files, or an edit); submit "
            "the run again, which writes it anew"
        )


def _write(folder: Path, texts: Mapping[Path, bytes]) -> None:
    # Other machines write here too, and process ids are a machine's own: the host tells them apart.
    partial = folder.with_name(f"{folder.name}.partial-{os.uname().nodename}-{os.getpid()}")
    try:
        for file, text in texts.items():
            target = partial / PACKAGE.name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.exists():  # else another submission of the same code was faster
            raise


def _require_own(folder: Path) -> None:
    reason = trust.first_distrusted(_paths(folder))
    if reason is not None:
        raise InputError(
            f"{reason}; what lies there is executed, so it must be yours alone: remove {folder} "
            "and submit again, or choose another run.root"
        )


def _paths(folder: Path) -> Iterator[Path]:
    """The folder that holds the snapshots, this one, and all that is in it."""
    yield folder.parent
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def _holds(path: Path, text: bytes) -> bool:
    try:
        return path.read_bytes() == text
    except OSError:
        return False


def _digest(texts: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for file, text in texts.items():
        digest.update(f"{file}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:_DIGITS]


def _sources(package: Path) -> dict[Path, bytes]:
    """The source in `package` by file, read once: what is hashed is what is copied."""
    texts = {}
    for path in package.rglob("*.py"):
        file = path.relative_to(package)
        if "conf" not in file.parts:
            texts[file] = path.read_bytes()
    return dict(sorted(texts.items()))
