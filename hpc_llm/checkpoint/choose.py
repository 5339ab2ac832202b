"""All ranks agree on the newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.errors import ManifestError, NoValidCheckpoint
from hpc_llm.checkpoint.manifest import Manifest

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
    """
    # Rank 0 looks at the folder: on a network file system others may see another state of it.
    present: list[int] = gather(manifest.steps(checkpoints) if rank == 0 else None)[0]
    rejected: list[tuple[int, str]] = []
    for step in reversed(present):
        folder = manifest.folder_of(checkpoints, step)
        found, problems = _my_share(folder, rank, world_size)
        problems = [problem for share in gather(problems) for problem in share]
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
