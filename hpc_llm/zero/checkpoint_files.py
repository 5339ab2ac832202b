"""A checkpoint engine for DeepSpeed: files are durable, hashed, and published by a manifest.

Source of the order of calls: DeepSpeedEngine.save_checkpoint (0.19.8) runs create → save … → commit
on every rank, with a barrier only after commit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)

from hpc_llm.checkpoint.choose import Gather
from hpc_llm.checkpoint.errors import SaveFailed
from hpc_llm.checkpoint.manifest import FileEntry
from hpc_llm.storage.files import no_room


class HashingWriter:
    """A file that knows the SHA-256 of what went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None  # torch.save hides the original error

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        size = memoryview(data).nbytes
        self.num_bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class ManifestCheckpointEngine(CheckpointEngine):
    """Collects what this rank writes of one checkpoint; `commit` lets `publish` make it exist.

    publish: called only on rank 0 with the files of all ranks, in the order of ranks; may raise
    OSError.
    """

    def __init__(
        self, rank: int, gather: Gather, publish: Callable[[Path, list[FileEntry]], None]
    ) -> None:
        super().__init__()
        self._rank = rank
        self._gather = gather
        self._publish = publish
        self._files: list[FileEntry] = []
        self._error: OSError | None = None
        self.vouched: set[Path] = set()  # files listed in a verified manifest
        self.beat: Callable[[], None] = lambda: None  # called with every file that is loaded

    def create(self, info: CheckpointCommitInfo) -> None:
        self._files = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Errors are kept for `commit`, as those of `save`.

        DeepSpeed logs some of them and goes on, and raises others on one rank alone.
        """
        try:
            super().makedirs(path, exist_ok)
        except OSError as error:
            self._error = self._error or error

    def save(self, state_dict: Any, path: str) -> None:
        """Write, fsync and hash one file.

        Errors are kept for `commit`, since other ranks wait in collectives.
        """
        if self._error is not None:
            return
        try:
            with Path(path).open("wb") as file:
                writer = HashingWriter(file)
                try:
                    torch.save(state_dict, cast("IO[bytes]", writer))
                except RuntimeError as error:
                    raise writer.error or error from error
                file.flush()
                os.fsync(file.fileno())
            self._files.append(FileEntry(Path(path).name, writer.num_bytes, writer.hexdigest()))
        except OSError as error:
            self._error = error

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Publish once all ranks have written everything.

        SaveFailed on every rank if any failed.
        """
        self._raise_together(self._error)
        files = [entry for share in self._gather(self._files) for entry in share]
        failed: OSError | None = None
        if self._rank == 0:
            try:
                self._publish(Path(info.save_dir) / info.tag, files)
            except OSError as error:
                failed = error
        self._raise_together(failed)
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        """Unpickle one file if a verified manifest lists it; ValueError otherwise."""
        if Path(path) not in self.vouched:
            raise ValueError(f"{path}: no verified manifest vouches for this file")
        self.beat()
        return torch.load(path, map_location=map_location, weights_only=False)

    def _raise_together(self, error: OSError | None) -> None:
        mine = None
        if error is not None:
            mine = (no_room(error), f"rank {self._rank}: {error.strerror or error}")
        errors = [other for other in self._gather(mine) if other is not None]
        if errors:
            raise SaveFailed("; ".join(text for _, text in errors), any(full for full, _ in errors))
