"""A run's word to its watchdog that Slurm is about to act on it: a file in the root, touched. Standard library only.

Looking at one file every second is cheap where asking Slurm is not: the watchdog asks when there is something to ask.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from hpc_llm.runs.layout import CODE_FOLDER

_FILE = ".attention"


def call(run: Path) -> None:
    """Have the watchdog of the run's root look soon; without effect where the root cannot be written."""
    for root in run.parents[:2]:  # <root>/<name> or <root>/<sweep>/<name>
        if (root / CODE_FOLDER).is_dir():
            with contextlib.suppress(OSError):
                (root / _FILE).touch()
            return


def last_call(root: Path) -> int:
    """When a run called last: nanoseconds of the file system's clock, to be compared with other calls; 0: never."""
    try:
        return (root / _FILE).stat().st_mtime_ns
    except OSError:
        return 0
