"""The folder beside the target in which it is prepared.

A preparation that was killed continues with its contents.

<out>.partial-<hash of the inputs>/
  inputs.json   recipe, and every input file with size and time
  prepare.json prepare.sbatch   for tasks on a cluster
  scan/         00000.npz: the first pass over a chunk (scan.Scanned)
  decided.npz   what happens to each document
  tokens/       00000.bin .npz: a chunk's tokens (tokenise.Tokenised)
  shards/       <shard>.npz: a finished shard (assemble.assembled)
  claims/       which machine does what, if several work
  out/          becomes <out>
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.storage.files import private_name, write_atomic
from hpc_llm.text.sources import InputFile

_FOLDERS = ("scan", "tokens", "shards", "out")
_MARK = ".partial-"


# Raised where files are read in another way: what an earlier version has read is not gone on with.
READER = 2


@dataclass(frozen=True)
class Workspace:
    """Paths of a preparation.

    Its name has a hash of the inputs, so preparations of other inputs do not collide.
    """

    path: Path

    @classmethod
    def begin(cls, directory: Path, recipe: dict[str, Any], files: list[InputFile]) -> Workspace:
        """The folder in which `directory` is prepared from these files, new or as it was left.

        Those for other inputs are removed.
        """
        listed = [dataclasses.astuple(file) for file in files]
        inputs = json.dumps({"recipe": recipe, "files": listed, "reader": READER})
        digest = hashlib.sha256(inputs.encode()).hexdigest()[:12]
        workspace = cls(directory.with_name(f"{directory.name}{_MARK}{digest}"))
        for other in cls._all(directory):
            if other != workspace or not workspace.inputs.exists():
                other.remove()
        if not workspace.inputs.exists():
            for name in _FOLDERS:
                (workspace.path / name).mkdir(parents=True)
            write_atomic(workspace.inputs, inputs)
        return workspace

    @classmethod
    def clear(cls, directory: Path) -> None:
        """Remove what preparations killed at the very end have left."""
        for workspace in cls._all(directory):
            workspace.remove()

    @classmethod
    def _all(cls, directory: Path) -> list[Workspace]:
        name = glob.escape(directory.name)
        working = directory.parent.glob(f"{name}{_MARK}*")
        being_removed = directory.parent.glob(f".{name}{_MARK}*")
        return [cls(path) for path in [*working, *being_removed]]

    @property
    def directory(self) -> Path:
        """The folder that is being prepared."""
        return self.path.with_name(self.path.name.rpartition(_MARK)[0])

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    @property
    def decided(self) -> Path:
        return self.path / "decided.npz"

    @property
    def claims(self) -> Path:
        return self.path / "claims"

    @property
    def out(self) -> Path:
        return self.path / "out"

    def scanned(self, chunk: int) -> Path:
        return self.path / "scan" / f"{chunk:05d}.npz"

    def tokens(self, chunk: int) -> Path:
        return self.path / "tokens" / f"{chunk:05d}.npz"

    def shard(self, name: str) -> Path:
        return self.path / "shards" / f"{name}.npz"

    def files(self) -> list[InputFile]:
        """The input files of the work that was begun."""
        return [InputFile(*values) for values in json.loads(self.inputs.read_bytes())["files"]]

    def remove(self) -> None:
        """Remove everything; to other processes it disappears at once."""
        gone = self.path.with_name(private_name(self.path.name.lstrip(".")))
        with suppress(FileNotFoundError):
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
