"""Where documents come from: the standard library's own text, or a folder of files. A document is a file."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One file; `name` is its path below the source, with slashes."""

    name: str
    path: str
    num_bytes: int  # by stat; 0 where the file is no longer there


class Rejected(Exception):
    """A document that cannot be used, and why."""


def documents(config: DataConfig) -> list[Document]:
    """Every file of the corpus, sorted by name. InputError if there is no such source or no file in it."""
    source = source_path(config)
    if config.name == "stdlib":
        suffixes, skipped, hint = (
            {".py"},
            _NOT_LIBRARY,
            "this Python has no library sources; use data=files data.source=DIR",
        )
    else:
        suffixes, skipped, hint = set(config.suffixes), set(), "name others with data.suffixes=[.txt,.md]"
    if not source.exists():
        raise InputError(f"data.source={source}: no such file or folder; give an existing one with data.source=PATH")
    if source.is_file():
        return [_document(source, source.name)]
    found = [_document(path, path.relative_to(source).as_posix()) for path in _files(source, suffixes, skipped)]
    if not found:
        raise InputError(f"data.source={source}: no file in it ends in {', '.join(sorted(suffixes))}; {hint}")
    return sorted(found, key=lambda document: document.name)


def source_path(config: DataConfig) -> Path:
    """Absolute path of the corpus. InputError if data.source is missing, or given where it has no effect."""
    if config.name == "stdlib":
        if config.source is not None:
            raise InputError(
                f"data.source={config.source}: has no effect with data=stdlib; use data=files or leave it out"
            )
        return Path(sysconfig.get_paths()["stdlib"])
    if config.source is None:
        raise InputError("data.source: missing; give a folder or a file of text with data.source=PATH")
    return Path(os.path.abspath(Path(config.source).expanduser()))  # noqa: PTH100 – resolve() would follow links


def corpus_bytes(config: DataConfig) -> int:
    """Bytes of the whole corpus, by stat alone. InputError as `documents`."""
    return sum(document.num_bytes for document in documents(config))


def read(path: str) -> tuple[bytes, str]:
    """Content of a document as bytes and as text. Rejected if it is unreadable, empty, no UTF-8, or holds NUL."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe would wait for ever
            raise Rejected("not a regular file")
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise Rejected("vanished") from None
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from None
    if b"\0" in data:
        raise Rejected("holds NUL")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(f"invalid UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise Rejected("empty")
    return data, text


def _files(source: Path, suffixes: set[str], skipped: set[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"data.source={source}: {error.filename} cannot be read: {error.strerror}; mend its permissions"
        )

    for folder, folders, names in os.walk(source, onerror=refuse):
        folders[:] = [name for name in folders if name not in skipped]
        yield from (Path(folder, name) for name in names if name.endswith(tuple(suffixes)))


def _document(path: Path, name: str) -> Document:
    try:
        num_bytes = path.stat().st_size
    except OSError:
        num_bytes = 0  # vanished or a broken link: `read` says so, and it is counted
    return Document(name, str(path), num_bytes)
