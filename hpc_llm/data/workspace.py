"""The folder beside the target in which it is prepared; a killed preparation goes on with what lies there.

<out>.partial/
  inputs.json   recipe, and every input file with size and time: where they differ now, work begins anew
  scan/         00000.npz: a chunk's first look (scan.Scanned)
  decided.npz   what becomes of each document
  tokens/       00000.bin .npz: a chunk's tokens (tokenise.Tokenised)
  shards/       <shard>.npz: a shard that is made (assemble.assembled)
  claims/       who is at what, where several machines work
  out/          becomes <out>
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.data.sources import InputFile
from hpc_llm.storage.files import write_atomic

_FOLDERS = ("scan", "tokens", "shards", "out")


@dataclass(frozen=True)
class Workspace:
    """Paths of a preparation."""

    path: Path

    @classmethod
    def beside(cls, directory: Path) -> Workspace:
        """The one of a target."""
        return cls(directory.with_name(f"{directory.name}.partial"))

    @property
    def plan(self) -> Path:
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

    def begin(self, recipe: dict[str, Any], files: list[InputFile]) -> bool:
        """Make the folder for this work; whether there was some of it already. Other work in it is thrown away."""
        plan = json.dumps({"recipe": recipe, "files": [dataclasses.astuple(file) for file in files]})
        if self.plan.exists() and self.plan.read_text() == plan:
            return True
        self.remove()
        for name in _FOLDERS:
            (self.path / name).mkdir(parents=True)
        write_atomic(self.plan, plan)
        return False

    def files(self) -> list[InputFile]:
        """The input files of the work that was begun."""
        return [InputFile(*values) for values in json.loads(self.plan.read_bytes())["files"]]

    def remove(self) -> None:
        """All of it. The plan goes first: without it nothing here counts."""
        self.plan.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
