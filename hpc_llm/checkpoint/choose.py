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
from hpc_llm.storage.patience import patiently

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
    What a file system refuses is asked for again for minutes, once for all checkpoints together; where it then gives an
    older one, the newer is as good as damaged. NoValidCheckpoint if there ought to be one and there is none: a run
    never silently starts from zero. OSError on every rank if there may be one that could not be read.
    """
    # Rank 0 looks at the folder: on a network file system others may see another state of it.
    present: list[int] = _together(lambda: manifest.steps(checkpoints) if rank == 0 else [], rank, gather)[0]
    rejected: list[tuple[int, str]] = []
    unread: OSError | None = None
    for step in reversed(present):
        folder = manifest.folder_of(checkpoints, step)
        try:
            shares = _together(partial(_my_share, folder, rank, world_size), rank, gather, patient=unread is None)
        except OSError as error:
            unread = error
            rejected.append((step, str(error)))
            continue
        found, problems = shares[rank][0], [problem for _, share in shares for problem in share]
        if not problems and found is not None:
            _together(partial(_reject, checkpoints, rejected if rank == 0 else []), rank, gather)
            return Choice(found, rejected)
        rejected.append((step, "; ".join(dict.fromkeys(problems))))
    if unread is not None:
        raise unread
    _together(partial(_reject, checkpoints, rejected if rank == 0 else []), rank, gather)
    if present or known_steps:
        reasons = "".join(f"\n  step {step}: {why}" for step, why in rejected)
        raise NoValidCheckpoint(
            f"no valid checkpoint in {checkpoints}, though step {max([known_steps, *present])} was saved; "
            f"bring one back, or choose another run.name to start anew{reasons}"
        )
    return Choice(None, rejected)


def _reject(checkpoints: Path, rejected: list[tuple[int, str]]) -> None:
    for step, _ in rejected:
        manifest.reject(manifest.folder_of(checkpoints, step))


def _my_share(folder: Path, rank: int, world_size: int) -> tuple[Manifest | None, list[str]]:
    try:
        found = manifest.read(folder)
    except ManifestError as error:
        return None, [str(error)]
    return found, manifest.verify(folder, found.files[rank::world_size])


def _together(look: Callable[[], T], rank: int, gather: Gather, patient: bool = True) -> list[T]:
    """What `look` gives on every rank, or the first error of any of them on all: nobody is left waiting."""
    mine, error = None, None
    try:
        mine = patiently(look) if patient else look()
    except OSError as problem:
        error = (problem.errno, f"rank {rank}: {problem.strerror}", problem.filename)
    shares = gather((mine, error))
    for failed in (failed for _, failed in shares if failed is not None):
        raise OSError(*failed)
    return [share for share, _ in shares]
