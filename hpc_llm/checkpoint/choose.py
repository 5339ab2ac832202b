"""All ranks agree on the newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.errors import ManifestError, NoValidCheckpoint
from hpc_llm.checkpoint.manifest import Manifest

T = TypeVar("T")
Gather = Callable[[Any], list[Any]]  # one object per rank → the list of all, on every rank


@dataclass(frozen=True)
class Choice:
    """manifest: of the checkpoint to load, None to start anew; rejected: newer ones and what is wrong with them."""

    manifest: Manifest | None
    rejected: list[tuple[int, str]]


def newest_valid(checkpoints: Path, known_steps: int, rank: int, world_size: int, gather: Gather) -> Choice:
    """Verify from the newest back, every rank its share of the files, until one is whole for all.

    known_steps: the newest step that the run's ledger knows to have been saved; 0 for none.
    NoValidCheckpoint if there ought to be one and there is none: a run never silently starts from zero.
    OSError on every rank if one of them could not look: a checkpoint is not thrown away for a file system's hiccup.
    """
    # Rank 0 looks at the folder: on a network file system others may see another state of it.
    present: list[int] = _together(lambda: manifest.steps(checkpoints) if rank == 0 else [], rank, gather)[0]
    rejected: list[tuple[int, str]] = []
    for step in reversed(present):
        folder = manifest.folder_of(checkpoints, step)
        shares = _together(partial(_my_share, folder, rank, world_size), rank, gather)
        found, problems = shares[rank][0], [problem for _, share in shares for problem in share]
        if not problems and found is not None:
            return Choice(found, rejected)
        rejected.append((step, "; ".join(dict.fromkeys(problems))))
        if rank == 0:
            manifest.reject(folder)
    if present or known_steps:
        reasons = "".join(f"\n  step {step}: {why}" for step, why in rejected)
        raise NoValidCheckpoint(
            f"no valid checkpoint in {checkpoints}, though step {max([known_steps, *present])} was saved; "
            f"bring one back, or choose another run.name to start anew{reasons}"
        )
    return Choice(None, rejected)


def _my_share(folder: Path, rank: int, world_size: int) -> tuple[Manifest | None, list[str]]:
    try:
        found = manifest.read(folder)
    except ManifestError as error:
        return None, [str(error)]
    return found, manifest.verify(folder, found.files[rank::world_size])


def _together(look: Callable[[], T], rank: int, gather: Gather) -> list[T]:
    """What `look` gives on every rank, or the first error of any of them on all: nobody is left waiting."""
    mine, error = None, None
    try:
        mine = look()
    except OSError as problem:
        error = (problem.errno, f"rank {rank}: {problem.strerror}", problem.filename)
    shares = gather((mine, error))
    for failed in (failed for _, failed in shares if failed is not None):
        raise OSError(*failed)
    return [share for share, _ in shares]
