"""Where documents come from: named sources, and the files of each.

They are in order of their names, which does not depend on the disk.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig, ReadingConfig

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_STDLIB = ReadingConfig(suffixes=[".py"])
_RECORDS = (".jsonl", ".json", ".parquet", ".arrow")
_OTHER_NAMES = {".ndjson": ".jsonl"}


@dataclass(frozen=True)
class Source:
    """A folder or a file, and how its documents are read."""

    name: str
    path: Path
    reading: ReadingConfig
    key: str  # of the path in the configuration


@dataclass(frozen=True)
class InputFile:
    """One file of a source; `name` is its path below the source, with slashes."""

    source: str
    name: str
    path: str
    num_bytes: int  # on disk, by stat; 0 if the file no longer exists
    mtime_ns: int

    @property
    def compression(self) -> str | None:
        """.gz, .zst, .xz, .bz2 or None."""
        for suffix in COMPRESSIONS:
            if self.name.lower().endswith(suffix):
                return suffix
        return None

    @property
    def kind(self) -> str:
        """.jsonl, .json, .parquet, .arrow; everything else counts as .txt."""
        name = self.name.lower().removesuffix(self.compression or "")
        suffix = Path(name).suffix
        suffix = _OTHER_NAMES.get(suffix, suffix)
        return suffix if suffix in _RECORDS else ".txt"


def sources(config: DataConfig) -> list[Source]:
    """The sources of `config`, sorted by name.

    InputError if data.source is missing, or has no effect.
    """
    if config.name == "stdlib":
        if config.source is not None or config.sources:
            raise InputError(
                f"data.source={config.source}: has no effect with data=stdlib; use data=files or "
                "leave it out"
            )
        return [Source("stdlib", Path(sysconfig.get_paths()["stdlib"]), _STDLIB, "data.source")]
    if not config.sources:
        if config.source is None:
            raise InputError(
                "data.source: missing; give a folder or a file of text with data.source=PATH"
            )
        return [Source(config.name, _absolute(config.source), config, "data.source")]
    base = _absolute(config.source or ".")
    named = []
    for name, source in sorted(config.sources.items()):
        path = _absolute(base / Path(source.path).expanduser())
        named.append(Source(name, path, source, f"data.sources.{name}.path"))
    return named


def files(source: Source) -> list[InputFile]:
    """Every file of a source, sorted by name.

    InputError if there is no such source, or no file in it.
    """
    if not source.path.exists():
        raise InputError(
            f"{source.key}={source.path}: no such file or folder; give an existing one with "
            f"{source.key}=PATH"
        )
    listed = []
    if source.path.is_file():
        listed.append(_file(source, source.path, source.path.name))
    else:
        for path in _walk(source):
            listed.append(_file(source, path, path.relative_to(source.path).as_posix()))
        listed.sort(key=lambda file: file.name)
    if not listed:
        raise InputError(
            f"{source.key}={source.path}: no file in it ends in {_suffixes(source)}; "
            f"{_hint(source)}"
        )
    _check_readers(source, listed)
    return listed


def _walk(source: Source) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"{source.key}={source.path}: {error.filename} cannot be read: {error.strerror}; fix "
            "its permissions"
        )

    endings: tuple[str, ...] = ()
    wanted = {suffix.lower() for suffix in source.reading.suffixes}
    for other, usual in _OTHER_NAMES.items():
        if usual in wanted:
            wanted.add(other)
    for suffix in sorted(wanted):
        endings += (suffix, *(suffix + compression for compression in COMPRESSIONS))
    for folder, folders, names in _folders(source.path, refuse):
        if source.reading is _STDLIB:
            folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        if "dataset_dict.json" in names:
            raise _several_datasets(source, folder, sorted(folders))
        if "state.json" in names and any(name.endswith(".arrow") for name in names):
            names = _of_saved_dataset(Path(folder))
        for name in names:
            if name.lower().endswith(endings):
                yield Path(folder, name)


def _several_datasets(source: Source, folder: str, names: list[str]) -> InputError:
    example = names[-1] if names else "train"
    return InputError(
        f"{source.key}={folder}: a saved DatasetDict of {', '.join(names)}; "
        f"give one of them, for example {source.key}={folder}/{example}"
    )


def _folders(
    top: Path, refuse: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk that follows links too, and reads every folder once.

    A folder that has a name of its own below `top` is read under that name.
    """
    seen = set[tuple[int, int]]()
    tops = [str(top)]
    for number, start in enumerate(tops):
        for folder, folders, names in os.walk(start, onerror=refuse):
            status = Path(folder).stat()
            key = (status.st_dev, status.st_ino)
            if number and key in seen:
                folders.clear()
                continue
            seen.add(key)
            folders.sort()
            yield folder, folders, names
            for name in folders:
                if Path(folder, name).is_symlink():
                    tops.append(f"{folder}/{name}")


def _of_saved_dataset(folder: Path) -> list[str]:
    """Files of a Hugging Face dataset saved to disk, without the caches beside them."""
    try:
        listed = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [str(each["filename"]) for each in listed]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder / 'state.json'}: names no data files; save the dataset again"
        ) from None


def _check_readers(source: Source, listed: list[InputFile]) -> None:
    for file in listed:
        if file.kind in (".parquet", ".arrow") and importlib.util.find_spec("pyarrow") is None:
            raise InputError(
                f"{source.key}: {file.name} needs pyarrow; type: pip install 'hpc_llm[parquet]'"
            )


def _file(source: Source, path: Path, name: str) -> InputFile:
    try:
        status = path.stat()
    except OSError:  # missing or a broken link: reading will say so, and it is counted as a reject
        return InputFile(source.name, name, str(path), 0, 0)
    return InputFile(source.name, name, str(path), status.st_size, status.st_mtime_ns)


def _suffixes(source: Source) -> str:
    return ", ".join(sorted(source.reading.suffixes))


def _hint(source: Source) -> str:
    if source.reading is _STDLIB:
        return "this Python has no library sources; use data=files data.source=DIR"
    return f"name others with {source.key.rpartition('.')[0]}.suffixes=[.txt,.md]"


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 – resolve() would follow links
