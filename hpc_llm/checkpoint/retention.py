"""Which checkpoints are kept."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from hpc_llm.checkpoint import leases
from hpc_llm.checkpoint.manifest import NAME, folder_of, folders, reshaped, steps

_WRITER = ".attempt-"  # a file that says by its name which attempt writes the checkpoint
_ASIDE = "manifest.pruned.json"  # the manifest, while it is decided whether the checkpoint goes


def to_delete(present: Iterable[int], keep: int, permanent_every: int | None) -> list[int]:
    """Which of the steps `present` to delete.

    All but the `keep` newest and multiples of `permanent_every`.
    """
    ordered = sorted(present)
    gone = []
    for step in ordered[:-keep]:
        is_permanent = bool(permanent_every) and step % (permanent_every or 1) == 0
        if not is_permanent:
            gone.append(step)
    return gone


def claim(folder: Path, attempt: int) -> None:
    """Make the folder of a checkpoint, and note in it which attempt writes there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{_WRITER}{attempt}").touch()


def prune(
    checkpoints: Path, keep: int, permanent_every: int | None, attempt: int | None = None
) -> list[int]:
    """Delete what `to_delete` names, unless somebody leases it; the steps that are gone.

    What an attempt after `attempt` has written stays: that one may still be writing it. Also
    deletes folders without a manifest older than the newest checkpoint.
    """
    leases.sweep(checkpoints)
    present = [
        step for step in steps(checkpoints) if not is_newer(folder_of(checkpoints, step), attempt)
    ]
    gone = []
    for step in to_delete(present, keep, permanent_every):
        if _remove_unless_leased(folder_of(checkpoints, step)):
            gone.append(step)
    for folder in folders(checkpoints):
        if is_newer(folder, attempt):
            continue
        if present and _is_left_over(folder, before=folder_of(checkpoints, present[-1])):
            remove(folder)
    return gone


def clear_reshaped(checkpoints: Path) -> None:
    """Delete checkpoints as other ranks wanted them, which killed attempts have left.

    Called after a save, when no rank reads one any more.
    """
    for folder in reshaped(checkpoints):
        remove(folder)


def is_newer(folder: Path, attempt: int | None) -> bool:
    """Whether an attempt after `attempt` writes, or has written, what is in `folder`."""
    if attempt is None:
        return False
    writers = [path.name.removeprefix(_WRITER) for path in folder.glob(f"{_WRITER}*")]
    return any(int(writer) > attempt for writer in writers if writer.isdecimal())


def remove(folder: Path) -> None:
    """Delete one checkpoint.

    The manifest goes first, so an interrupted deletion leaves none that looks valid.
    """
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: Path, before: Path) -> bool:
    """Whether it was never published and never will be: a newer one is."""
    return not (folder / NAME).exists() and folder < before


def _remove_unless_leased(folder: Path) -> bool:
    """Whether it was removed.

    A lease may be taken while this runs. Its reader first writes the lease and then looks for the
    manifest; here the manifest is first moved away and then leases are looked for: one of the two
    sees the other.
    """
    if leases.held(folder):
        return False
    aside = folder / _ASIDE
    with contextlib.suppress(FileNotFoundError):
        (folder / NAME).rename(aside)
    if leases.held(folder) and aside.exists():
        aside.rename(folder / NAME)
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
