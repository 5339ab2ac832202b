"""Which checkpoints are kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hpc_llm.checkpoint.manifest import NAME, folder_of, folders, reshaped, steps


def to_delete(present: Iterable[int], keep: int, permanent_every: int | None) -> list[int]:
    """Which of the steps `present` to delete: all but the `keep` newest and multiples of
    `permanent_every`.
    """
    ordered = sorted(present)
    newest = set(ordered[-keep:])
    return [
        step
        for step in ordered
        if step not in newest and not (permanent_every and step % permanent_every == 0)
    ]


def prune(checkpoints: Path, keep: int, permanent_every: int | None) -> list[int]:
    """Delete what `to_delete` names, and folders without a manifest older than the newest
    checkpoint.

    Called after a save, when no rank reads a reshaped checkpoint any more: those that are left are
    of killed attempts. The manifest is deleted first, so an interrupted deletion leaves no
    checkpoint that looks valid.
    """
    present = steps(checkpoints)
    gone = to_delete(present, keep, permanent_every)
    for step in gone:
        remove(folder_of(checkpoints, step))
    for folder in folders(checkpoints):
        if (
            not (folder / NAME).exists()
            and present
            and folder < folder_of(checkpoints, present[-1])
        ):
            remove(folder)
    for folder in reshaped(checkpoints):
        remove(folder)
    return gone


def remove(folder: Path) -> None:
    """Delete one checkpoint, its manifest first."""
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
