"""tcmalloc in place of glibc's malloc, for processes that train on a CPU.

Every step allocates and frees the same large blocks. glibc either returns them to the system, so
that every step faults in fresh pages, or keeps them (training.device.keep_memory) in a heap whose
holes torch's aligned blocks often do not fit, so that it grows to twice the live memory.
gperftools' tcmalloc keeps pages and merges neighbours (measurements of both: benchmarks/memory.md).
It has to be loaded when a process starts.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
SETTINGS = {
    "TCMALLOC_RELEASE_RATE": "0",  # never hand pages back
    # No reports on stderr about blocks of a gigabyte.
    "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(2**62),
}
# Symbols that only tcmalloc, jemalloc and mimalloc have.
_OF_OTHERS = ("tc_version", "mallctl", "mi_version")


def restart_with_tcmalloc() -> None:
    """Restart this process with tcmalloc, under the same pid; return if there is no tcmalloc.

    Call it before anything is set up: Python's signal handlers and open files are lost.
    """
    if another_in_use() or not (wanted := environment(os.environ, library())):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def another_in_use() -> bool:
    """Whether malloc is not libc's."""
    process = ctypes.CDLL(None)
    return any(hasattr(process, name) for name in _OF_OTHERS)


def library() -> str | None:
    """tcmalloc for LD_PRELOAD: of this Python's environment (conda), else of the system."""
    own = [Path(sys.prefix) / "lib" / name for name in LIBRARIES]
    candidates = [str(path) for path in own if path.exists()]
    for name in [*candidates, *LIBRARIES]:
        if _is_preloaded(name):
            return name
    return None


def _is_preloaded(name: str) -> bool:
    """Whether the loader finds it.

    Tried in another process: with two mallocs loaded, this one would soon abort.
    """
    alone = {"PATH": os.environ.get("PATH", os.defpath), "LD_PRELOAD": name}
    done = subprocess.run(["true"], env=alone, stderr=subprocess.PIPE)
    return done.returncode == 0 and not done.stderr


def environment(given: Mapping[str, str], library: str | None) -> dict[str, str]:
    """Variables to add to `given` to start a process with `library` as its malloc.

    None if it must not have it.
    A user's own settings are kept. What LD_PRELOAD already names was tried, and is not tried again.
    """
    loaded = given.get("LD_PRELOAD", "")
    if library is None or library in loaded:
        return {}
    settings = {key: value for key, value in SETTINGS.items() if key not in given}
    return {"LD_PRELOAD": f"{loaded}:{library}".strip(":"), **settings}
