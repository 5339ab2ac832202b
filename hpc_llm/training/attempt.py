"""What an attempt may use of its run: paths, the fence, the ledger, signs of life."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.runs.heartbeat import Phase


@dataclass(frozen=True)
class Attempt:
    """The parts of its run that an attempt may use."""

    number: int
    rank: int
    checkpoints: Path
    metrics: Path
    tracker_folder: Callable[[str], Path]  # where a tracker may write, by its name
    known_steps: int  # newest step that the ledger has as saved
    check_fence: Callable[[], None]  # raises if a newer attempt exists
    record: Callable[..., None]  # one ledger event; only rank 0 writes
    skipped: tuple[int, ...]  # steps of the data's order that are left out
    divergence: Path  # file for a record of what a diverged step was trained on
    beat: Callable[[int, Phase], None]  # a sign of life: steps done, and the phase that begins now
