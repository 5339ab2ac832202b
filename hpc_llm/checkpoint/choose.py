"""All ranks agree on the newest complete checkpoint."""

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
    """manifest: of the checkpoint to load, None to start at zero; rejected: newer ones and what is
    wrong with them.
    """

    manifest: Manifest | None
    rejected: list[tuple[int, str]]


def newest_valid(
    checkpoints: Path, known_steps: int, rank: int, world_size: int, gather: Gather
) -> Choice:
    """Verify checkpoints from the newest back, each rank its share of the files, until one is valid
    for all ranks.

    known_steps: the newest step that the run's ledger has as saved; 0 for none.
    File-system errors are retried for minutes, once for all checkpoints together; if an older
    checkpoint can then be read, the newer one counts as damaged. NoValidCheckpoint if there should
    be one and there is none: a run never silently starts from zero. OSError on every rank if there
    may be one that could not be read.
    """
    # Rank 0 lists the folder: on a network file system other ranks may see a different state of it.
    present: list[int] = _together(
        lambda: manifest.steps(checkpoints) if rank == 0 else [], rank, gather
    )[0]
    rejected: list[tuple[int, str]] = []
    unread: OSError | None = None
    for step in reversed(present):
        folder = manifest.folder_of(checkpoints, step)
        try:
            shares = _together(
                partial(_my_share, folder, rank, world_size), rank, gather, patient=unread is None
            )
        except OSError as error:
            unread = error
            rejected.append((step, str(error)))
            continue
        found = shares[rank][0]
        problems = [problem for _, share in shares for problem in share]
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
            f"no valid checkpoint in {checkpoints}, though step {max([known_steps, *present])} "
            f"was saved; bring one back, or choose another run.name to start anew{reasons}"
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
    """What `look` returns on every rank, or the first error of any rank on all: no rank is left
    waiting.
    """
    mine = None
    error = None
    try:
        mine = patiently(look) if patient else look()
    except OSError as problem:
        error = (problem.errno, f"rank {rank}: {problem.strerror}", problem.filename)
    shares = gather((mine, error))
    for failed in (failed for _, failed in shares if failed is not None):
        raise OSError(*failed)
    return [share for share, _ in shares]
