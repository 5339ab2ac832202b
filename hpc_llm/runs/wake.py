"""How a run asks its watchdog to look soon, because Slurm is about to act on it.

Standard library only. The run touches a file in the root. Checking one file every second is cheap
and asking Slurm is not, so the watchdog asks only when there is something to ask about.
"""

from __future__ import annotations

import contextlib

from hpc_llm.runs.layout import RootLayout, RunLayout


def wake_watchdog(run: RunLayout) -> None:
    """Make the watchdog of the run's root look soon; no effect if the root cannot be written."""
    with contextlib.suppress(OSError):
        RootLayout.of(run).attention.touch()


def last_call(root: RootLayout) -> int:
    """When a run last called, in nanoseconds by the file system's clock; 0: never."""
    try:
        return root.attention.stat().st_mtime_ns
    except OSError:
        return 0
