"""All ranks agree on the newest complete checkpoint."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.errors import ManifestError, NoValidCheckpoint, OtherFormat
from hpc_llm.checkpoint.manifest import Manifest
from hpc_llm.storage.patience import patiently

# After a look that lacks what the ledger knows. Long enough for caches of a second or three: what
# an NFS client remembers for a minute is forgotten at once (_listed_anew).
LOOK_AGAIN_S = 10.0
_PAUSE_S = 0.5
T = TypeVar("T")
Gather = Callable[[Any], list[Any]]  # one object per rank → the list of all, on every rank


@dataclass(frozen=True)
class _Share:
    """What a rank tells the others of one checkpoint.

    Not the manifest, which each has read: of 4,096 ranks it has 1 MiB, and each got all of them.
    """

    problems: tuple[str, ...] = ()
    other_format: str | None = None  # why this version may not judge it


class _Reader:
    """This rank's look at one checkpoint: its manifest, and this rank's share of the files."""

    def __init__(self, folder: Path, rank: int, world_size: int, beat: Callable[[], None]) -> None:
        self.manifest: Manifest | None = None
        self._folder = folder
        self._files = slice(rank, None, world_size)
        self._beat = beat

    def share(self) -> _Share:
        """OSError where something could not be read for now."""
        try:
            self.manifest = manifest.read(self._folder)
        except OtherFormat as error:
            return _Share(other_format=str(error))
        except ManifestError as error:
            return _Share(problems=(str(error),))
        problems = manifest.verify(self._folder, self.manifest.files[self._files], self._beat)
        return _Share(tuple(problems))


@dataclass(frozen=True)
class Choice:
    """What all ranks load."""

    manifest: Manifest | None  # of the checkpoint to load; None: start at zero
    rejected: list[tuple[int, str]]  # newer ones, by their steps, and what is wrong with them
    missing: int | None = None  # a step that was saved, of which nothing is there


def newest_valid(
    checkpoints: Path,
    known_steps: int,
    rank: int,
    world_size: int,
    gather: Gather,
    beat: Callable[[], None] = lambda: None,
) -> Choice:
    """Verify checkpoints from the newest back until one is valid for all ranks. Collective.

    Each rank verifies its share of the files, and calls `beat` as it goes on.
    known_steps: the newest step that the run's ledger has as saved; 0 for none.
    File-system errors are retried for minutes, once for all checkpoints together; if an older
    checkpoint can then be read, the newer one counts as damaged. NoValidCheckpoint if there should
    be one and there is none: a run never silently starts from zero; also if another version wrote
    the newest one, and then nothing is touched. OSError on every rank if there
    may be one that could not be read.
    """
    # Rank 0 lists the folder: on a network file system other ranks may see a different state of it.
    present, missing = _together(
        lambda: _present(checkpoints, known_steps) if rank == 0 else ([], None), rank, gather
    )[0]
    rejected: list[tuple[int, str]] = []
    unread: OSError | None = None
    for step in reversed(present):
        folder = manifest.folder_of(checkpoints, step)
        mine = _Reader(folder, rank, world_size, beat)
        try:
            shares = _together(mine.share, rank, gather, patient=unread is None)
        except OSError as error:
            unread = error
            rejected.append((step, str(error)))
            continue
        _refuse_other_format(shares)
        described = mine.manifest
        problems = [problem for share in shares for problem in share.problems]
        if not problems and described is not None:
            _reject_on_rank_0(checkpoints, rejected, rank, gather)
            return Choice(described, rejected, missing)
        rejected.append((step, "; ".join(dict.fromkeys(problems))))
    if unread is not None:
        raise unread
    _reject_on_rank_0(checkpoints, rejected, rank, gather)
    if present or known_steps:
        reasons = "".join(f"\n  step {step}: {why}" for step, why in rejected)
        raise NoValidCheckpoint(
            f"no valid checkpoint in {checkpoints}, though step {max([known_steps, *present])} "
            f"was saved; bring one back, or choose another run.name to start anew{reasons}"
        )
    return Choice(None, rejected)


def _present(checkpoints: Path, known_steps: int) -> tuple[list[int], int | None]:
    """Steps that have a checkpoint, and the step that the ledger knows and that is not there.

    A listing without the newest checkpoint may be an old one: it is asked for again.
    """
    present = manifest.steps(checkpoints)
    deadline = time.monotonic() + LOOK_AGAIN_S
    while max(present, default=0) < known_steps and not _is_rejected(checkpoints, known_steps):
        if time.monotonic() >= deadline:
            return present, known_steps
        time.sleep(_PAUSE_S)
        present = _listed_anew(checkpoints)
    return present, None


def _is_rejected(checkpoints: Path, step: int) -> bool:
    """Whether an earlier attempt found the checkpoint damaged: nobody need wait for it."""
    return (manifest.folder_of(checkpoints, step) / manifest.REJECTED).exists()


def _listed_anew(checkpoints: Path) -> list[int]:
    """`manifest.steps` after a change in the folder.

    The answer to its own change makes an NFS client forget what it remembers of the folder.
    """
    with contextlib.suppress(OSError):  # where nothing can be written, it is listed all the same
        tempfile.TemporaryFile(dir=checkpoints).close()
    return manifest.steps(checkpoints)


def _reject_on_rank_0(
    checkpoints: Path, rejected: list[tuple[int, str]], rank: int, gather: Gather
) -> None:
    def reject() -> None:
        if rank != 0:
            return
        for step, _ in rejected:
            manifest.reject(manifest.folder_of(checkpoints, step))

    _together(reject, rank, gather)


def _refuse_other_format(shares: list[_Share]) -> None:
    for share in shares:
        if share.other_format is not None:
            raise NoValidCheckpoint(
                f"{share.other_format}: submit again from a checkout of that version, or move the "
                "folder away to go on from an older checkpoint"
            )


def _together(look: Callable[[], T], rank: int, gather: Gather, patient: bool = True) -> list[T]:
    """What `look` returns on every rank, or the first error of any rank on all.

    So no rank is left waiting.
    """
    mine = None
    error = None
    try:
        mine = patiently(look) if patient else look()
    except OSError as problem:
        error = (problem.errno, f"rank {rank}: {problem.strerror}", problem.filename)
    shares = gather((mine, error))
    for _, failed in shares:
        if failed is not None:
            raise OSError(*failed)
    return [share for share, _ in shares]
