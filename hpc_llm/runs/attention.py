"""A run's word to its watchdog that Slurm is about to act on it: a file in the root, touched. Standard library only.

Looking at one file every second is cheap where asking Slurm is not: the watchdog asks when there is something to ask.
"""

from __future__ import annotations

import contextlib

from hpc_llm.runs.layout import RootLayout, RunLayout


def call(run: RunLayout) -> None:
    """Have the watchdog of the run's root look soon; without effect where the root cannot be written."""
    with contextlib.suppress(OSError):
        RootLayout.of(run).attention.touch()


def last_call(root: RootLayout) -> int:
    """When a run called last: nanoseconds of the file system's clock, to be compared with other calls; 0: never."""
    try:
        return root.attention.stat().st_mtime_ns
    except OSError:
        return 0
