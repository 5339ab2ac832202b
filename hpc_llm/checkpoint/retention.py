"""Which checkpoints are kept."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from hpc_llm.checkpoint import leases
from hpc_llm.checkpoint.manifest import NAME, folder_of, folders, reshaped, steps

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


def prune(checkpoints: Path, keep: int, permanent_every: int | None) -> list[int]:
    """Delete what `to_delete` names, unless somebody leases it; the steps that are gone.

    Also deletes folders without a manifest older than the newest checkpoint. Called after a save,
    when no rank reads a reshaped checkpoint any more: those that are left are of killed attempts.
    """
    leases.sweep(checkpoints)
    present = steps(checkpoints)
    gone = []
    for step in to_delete(present, keep, permanent_every):
        if _remove_unless_leased(folder_of(checkpoints, step)):
            gone.append(step)
    for folder in folders(checkpoints):
        if present and _is_left_over(folder, before=folder_of(checkpoints, present[-1])):
            remove(folder)
    for folder in reshaped(checkpoints):
        remove(folder)
    return gone


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
