"""Limits that a login shell sets for itself, and that Slurm carries into jobs. Standard library."""

from __future__ import annotations

import contextlib
import resource


def allow_open_files() -> None:
    """Let this process and its children open as many files as the machine allows.

    A login shell's soft limit is often 1024; NCCL's first meeting of the ranks needs more from four
    nodes on (github.com/allenai/OLMo-core/issues/524).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # such as an unlimited one above the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
