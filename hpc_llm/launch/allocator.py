"""tcmalloc in place of glibc's malloc, for processes that train on a CPU.

A step takes and frees the same large blocks. glibc hands them back, and every step faults in fresh pages; or it keeps
them (training.device.keep_memory), in a heap whose holes torch's aligned blocks often do not fit: it grows to twice
what is alive. tcmalloc, of gperftools, keeps pages and joins neighbours (rows of both: benchmarks/memory.md). It has
to be there when a process begins.
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
    "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(2**62),  # no word on stderr about blocks of a gigabyte
}
_OF_OTHERS = ("tc_version", "mallctl", "mi_version")  # what tcmalloc, jemalloc and mimalloc alone have


def restart_with_tcmalloc() -> None:
    """Begin this process anew with tcmalloc, under the same pid; return where there is none to be had.

    Call it before anything is set up: signal handlers and open files of Python's are gone afterwards.
    """
    if another_in_use() or not (wanted := environment(os.environ, library())):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def another_in_use() -> bool:
    """Whether malloc is another than libc's."""
    process = ctypes.CDLL(None)
    return any(hasattr(process, name) for name in _OF_OTHERS)


def library() -> str | None:
    """tcmalloc as LD_PRELOAD takes it: in this Python's environment (conda), or wherever the loader finds it."""
    own = [str(path) for name in LIBRARIES if (path := Path(sys.prefix) / "lib" / name).exists()]
    return next((name for name in [*own, *LIBRARIES] if _is_preloaded(name)), None)


def _is_preloaded(name: str) -> bool:
    """Whether the loader takes it, asked of another process: with two mallocs in it, this one would soon be aborted."""
    alone = {"PATH": os.environ.get("PATH", os.defpath), "LD_PRELOAD": name}
    done = subprocess.run(["true"], env=alone, stderr=subprocess.PIPE)
    return done.returncode == 0 and not done.stderr


def environment(given: Mapping[str, str], library: str | None) -> dict[str, str]:
    """What a process is started with beside `given` to have `library` as its malloc; nothing if it must not.

    A user's own settings stay. What LD_PRELOAD names already was tried, and is not tried again.
    """
    loaded = given.get("LD_PRELOAD", "")
    if library is None or library in loaded:
        return {}
    settings = {key: value for key, value in SETTINGS.items() if key not in given}
    return {"LD_PRELOAD": f"{loaded}:{library}".strip(":"), **settings}
