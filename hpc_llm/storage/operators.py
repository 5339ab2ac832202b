"""Where DeepSpeed's compiled operators lie: a folder for all that a binary depends on.

No torch here, so that `submit` can look without importing it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from hpc_llm.config.optimizers import optimizer


def needed(name: str, device: str) -> str | None:
    """The operator that the optimizer `name` runs on `device` (cuda, cpu); None if it is torch's.

    InputError if there is no such optimizer.
    """
    return optimizer(name).kernel(device)


def folder(architecture: str) -> Path:
    """Folder of operators for this Python, torch with its CUDA, DeepSpeed and `architecture`."""
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    key = f"{python}-torch{version('torch')}-ds{version('deepspeed')}-{architecture}"
    return _cache() / "ops" / key


def _cache() -> Path:
    given = os.environ.get("HPC_LLM_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hpc_llm"


def library(name: str, architecture: str) -> Path:
    """Path of the shared library of operator `name`, whether it exists or not."""
    return folder(architecture) / name / f"{name}.so"


def built_for(name: str, capability: str) -> Path | None:
    """A library of operator `name` whose list of GPU architectures has `capability`, as 9.0.

    The list is what TORCH_CUDA_ARCH_LIST was when it was compiled.
    """
    pattern = folder("sm").name
    for path in sorted(folder("sm").parent.glob(f"{pattern}*/{name}/{name}.so")):
        listed = path.parent.parent.name.removeprefix(pattern)
        if capability in listed.replace("+PTX", "").split("_"):
            return path
    return None


def cpu_architecture() -> str:
    """This processor, with its instruction sets: DeepSpeed compiles with -march=native."""
    flags = hashlib.sha256(_cpu_flags().encode()).hexdigest()[:8]
    return f"{platform.machine()}-{flags}"


def _cpu_flags() -> str:
    """The line of /proc/cpuinfo that names the instruction sets; empty if there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line
    return ""
