"""The manifest, without which a folder is not a checkpoint. Standard library only.

```
checkpoints/step-00001000/
  mp_rank_00_model_states.pt, …    what the ranks wrote, fsynced and hashed
  manifest.json                    renamed into place last
checkpoints/step-00001000.reshaped/  the same for another number of ranks, while they load it
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm import __version__
from hpc_llm.checkpoint.errors import ManifestError, OtherFormat
from hpc_llm.config import building
from hpc_llm.storage.files import fsync_directory, sha256_of, write_json

FORMAT = 1
NAME = "manifest.json"
REJECTED = "manifest.rejected.json"
_RESHAPED = ".reshaped"


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, relative to its folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint contains and what wrote it."""

    step: int  # optimizer steps done
    tokens: int  # trained on so far
    attempt: int
    world_size: int
    zero_stage: int
    precision: str
    optimizer: str  # the implementation that wrote the states
    versions: dict[str, str]
    files: list[FileEntry]
    # Mixtures trained with so far (planning.mixture).
    phases: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def stages(self) -> tuple[int, ...]:
        """The ZeRO stages that can load it.

        1 and 2 store their states alike, 0 and 3 each in a way of its own.
        """
        if self.zero_stage in (1, 2):
            return (1, 2)
        return (self.zero_stage,)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def folders(checkpoints: Path) -> list[Path]:
    """Folders of checkpoints, with or without a manifest; anything else there is ignored."""
    return [
        path
        for path in checkpoints.glob("step-[0-9]*")
        if path.name.removeprefix("step-").isdecimal()
    ]


def reshaped_of(folder: Path) -> Path:
    """Where the checkpoint in `folder` lies for another number of ranks, while they load it."""
    return folder.with_name(folder.name + _RESHAPED)


def reshaped(checkpoints: Path) -> list[Path]:
    """Folders of `reshaped_of`."""
    return list(checkpoints.glob(f"step-[0-9]*{_RESHAPED}"))


def steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that have a manifest, ascending. Nothing is verified."""
    return sorted(
        int(path.name.removeprefix("step-"))
        for path in folders(checkpoints)
        if (path / NAME).exists()
    )


def newest_step(checkpoints: Path) -> int:
    """The newest of `steps`; 0 for none."""
    return max(steps(checkpoints), default=0)


def publish(folder: Path, manifest: Manifest) -> None:
    """Make the checkpoint exist. All its files must be written and fsynced."""
    fsync_directory(folder)
    write_json(folder / NAME, dataclasses.asdict(manifest))
    fsync_directory(folder.parent)


def read(folder: Path) -> Manifest:
    """The manifest of `folder`; keys that this version does not know are passed over.

    ManifestError says what is wrong with it, OtherFormat that it is another version's; OSError: it
    could not be read now.
    """
    try:
        fields = json.loads((folder / NAME).read_text())
        _refuse_other_format(folder, fields)
        files = [FileEntry(**building.known(FileEntry, entry)) for entry in fields["files"]]
        manifest = Manifest(**{**building.known(Manifest, fields), "files": files})
    except FileNotFoundError:
        raise ManifestError("no manifest") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"manifest unreadable ({error})") from error
    if manifest.step != int(folder.name.partition("-")[2]):
        raise ManifestError(f"manifest of step {manifest.step} in {folder.name}")
    for entry in manifest.files:
        if entry.name in ("", "..") or Path(str(entry.name)).name != entry.name:
            raise ManifestError("a file name leads out of the folder")
    return manifest


def _refuse_other_format(folder: Path, fields: Any) -> None:
    written = fields["format"]
    if written == FORMAT:
        return
    if not isinstance(written, (int, float, str)):
        raise ValueError(f"format {written!r}")
    versions = fields.get("versions")
    writer = "of another version"
    if isinstance(versions, dict):
        writer = versions.get("hpc_llm", writer)
    raise OtherFormat(
        f"{folder} has format {written}, written by hpc_llm {writer}; this is hpc_llm "
        f"{__version__}, which reads format {FORMAT}"
    )


def verify(
    folder: Path, entries: list[FileEntry], beat: Callable[[], None] = lambda: None
) -> list[str]:
    """Differences of `entries` from the manifest: missing, truncated or changed files.

    `beat` is called as it goes on.

    OSError if a file could not be read now, which says nothing about its content.
    """
    problems = []
    for entry in entries:
        try:
            problem = _difference(folder / entry.name, entry, beat)
        except FileNotFoundError as error:
            problem = error.strerror
        if problem is not None:
            problems.append(f"{entry.name}: {problem}")
    return problems


def _difference(path: Path, entry: FileEntry, beat: Callable[[], None]) -> str | None:
    """How the file at `path` differs from `entry`.

    It is opened before its size is asked for: then a client of a network file system asks the
    server.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return "is no file that a rank wrote"  # a pipe may never end
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            return f"{size} bytes, {entry.bytes} expected"
        if sha256_of(file, beat) != entry.sha256:
            return "content does not match its SHA-256"
    return None


def reject(folder: Path) -> None:
    """Take the manifest away: the checkpoint no longer exists.

    Its files stay until the next save or pruning.
    """
    with contextlib.suppress(FileNotFoundError):
        (folder / NAME).rename(folder / REJECTED)
    fsync_directory(folder)
