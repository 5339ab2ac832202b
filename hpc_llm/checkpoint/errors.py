"""Errors of checkpoints."""

from __future__ import annotations


class ManifestError(Exception):
    """A checkpoint that must not be loaded, and why."""


class OtherFormat(ManifestError):
    """A checkpoint that another version of the program wrote: not damaged, and not ours to judge.

    Nothing of it may be renamed or removed.
    """


class NoValidCheckpoint(Exception):
    """There were checkpoints, and none of them can be loaded."""


class SaveFailed(Exception):
    """A checkpoint could not be written on some rank; all ranks raise it.

    full: for lack of space.
    """

    def __init__(self, message: str, full: bool) -> None:
        super().__init__(message)
        self.full = full
