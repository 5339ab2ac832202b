"""Indexes of packed rows: a file beside each shard for each sequence length.

They are written once, and read through a memory map.

<stem>.pack-<seq_len>   little-endian uint64: header [6], ends [rows], starts [pieces], sizes
[pieces] (packing.Packed)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_llm.config import hints
from hpc_llm.config.errors import InputError
from hpc_llm.data.manifest import Manifest, Shard, read_manifest
from hpc_llm.data.packing import Packed, pack
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.locks import locked

# Told how far preparation is: stage, bytes of text done, bytes in all (0: not known), tokens.
OnProgress = Callable[[str, int, int, int], None]

_FORMAT = 1
# format, seq_len, start of the SHA-256 of the shard's index, rows, pieces, positions in use
_HEADER = 6


def ensure(directory: Path, seq_len: int, on_progress: OnProgress | None = None) -> None:
    """Pack every shard of prepared data that is not yet packed for `seq_len`.

    One process does it at a time. on_progress gets bytes of shards, and 0 tokens. InputError if the
    data is not prepared, or the folder cannot be written.
    """
    manifest = read_manifest(directory)
    shards: list[Shard] = []
    for split in manifest.shards:
        shards += manifest.shards_of(split)
    if not any(_missing(directory, shard, seq_len) for shard in shards):
        return
    size = np.dtype(manifest.dtype).itemsize
    done = 0
    total = size * sum(shard.tokens for shard in shards)
    try:
        with locked(directory / ".pack.lock"):
            for shard in shards:
                if _missing(directory, shard, seq_len):
                    _write(directory, shard, seq_len)
                done += size * shard.tokens
                if on_progress:
                    on_progress(f"packing rows of {seq_len} tokens", done, total, 0)
    except OSError as error:
        raise InputError(
            f"data.packing=best_fit: {directory} cannot be written ({error.strerror}); ask its "
            "owner to prepare it with the same keys, or copy it to a folder of yours and name "
            "that as data.out"
        ) from None


def open_pack(directory: Path, shard: Shard, seq_len: int) -> Packed:
    """The packed rows of a shard, memory-mapped.

    InputError if they are missing, or belong to another shard.
    """
    path = _path(directory, shard, seq_len)
    if _missing(directory, shard, seq_len):
        raise InputError(
            f"{path}: missing or damaged; pack again: {hints.command('prepare')} "
            "data.packing=best_fit …"
        )
    values = np.asarray(np.memmap(path, "<u8", mode="r"))
    rows = int(values[3])
    pieces = int(values[4])
    ends, starts, sizes = np.split(values[_HEADER:], [rows, rows + pieces])
    return Packed(starts, sizes, ends)


def wasted(directory: Path, manifest: Manifest, split: str, seq_len: int) -> float:
    """Fraction of positions of packed rows that are padding, from the headers alone.

    OSError if they are missing.
    """
    rows = 0
    used = 0
    for shard in manifest.shards[split]:
        header = _header(_path(directory, shard, seq_len))
        rows += int(header[3])
        used += int(header[5])
    return 1 - used / (rows * seq_len) if rows else 0.0


def num_rows(directory: Path, manifest: Manifest, split: str, seq_len: int) -> dict[str, int]:
    """Packed rows of each source, from the headers alone.

    OSError or ValueError if they are missing or cut off.
    """
    counts = dict.fromkeys(manifest.sources, 0)
    for shard in manifest.shards[split]:
        counts[shard.source] += int(_header(_path(directory, shard, seq_len))[3])
    return counts


def _write(directory: Path, shard: Shard, seq_len: int) -> None:
    offsets = np.fromfile((directory / shard.file).with_suffix(".idx"), "<u8")
    packed = pack(offsets, seq_len)
    header = [
        _FORMAT,
        seq_len,
        _fingerprint(shard),
        len(packed.ends),
        len(packed.starts),
        int(packed.sizes.sum()),
    ]
    arrays = (np.array(header, "<u8"), packed.ends, packed.starts, packed.sizes)
    content = b"".join(array.astype("<u8").tobytes() for array in arrays)
    write_atomic(_path(directory, shard, seq_len), content)


def _missing(directory: Path, shard: Shard, seq_len: int) -> bool:
    """Whether the file is missing, incomplete, or of another shard, length or format."""
    path = _path(directory, shard, seq_len)
    with contextlib.suppress(OSError, ValueError):
        header = _header(path)
        size = 8 * (_HEADER + int(header[3]) + 2 * int(header[4]))
        return (
            header[:3].tolist() != [_FORMAT, seq_len, _fingerprint(shard)]
            or path.stat().st_size != size
        )
    return True


def _header(path: Path) -> np.ndarray:
    header = np.fromfile(path, "<u8", count=_HEADER)
    if len(header) != _HEADER:
        raise ValueError(f"{path}: cut off")
    return header


def _path(directory: Path, shard: Shard, seq_len: int) -> Path:
    return (directory / shard.file).with_suffix(f".pack-{seq_len}")


def _fingerprint(shard: Shard) -> int:
    return int(shard.index_sha256[:16], 16)
