"""Where DeepSpeed's compiled operators are stored: one folder per combination of what the binary
depends on.

No torch here, so that `submit` can look without importing it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def needed(optimizer: str, device: str) -> str | None:
    """The operator that `optimizer` (optim.name) runs on `device` (cuda, cpu); None if it is
    torch's own.
    """
    if optimizer == "fused_lion" and device == "cpu":
        return "cpu_lion"  # DeepSpeed has no fused_lion kernel for CPUs
    return None if optimizer in ("torch_adam", "muon") else optimizer


def folder(architecture: str) -> Path:
    """Folder of the operators for this Python, torch (its CUDA with it), DeepSpeed and
    `architecture`.
    """
    cache = (
        os.environ.get("HPC_LLM_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hpc_llm"
    )
    key = f"py{sys.version_info.major}.{sys.version_info.minor}-torch{version('torch')}-ds{version('deepspeed')}"
    return Path(cache).expanduser() / "ops" / f"{key}-{architecture}"


def library(name: str, architecture: str) -> Path:
    """Path of the shared library of operator `name`, whether it exists or not."""
    return folder(architecture) / name / f"{name}.so"


def built_for(name: str, capability: str) -> Path | None:
    """A library of operator `name` whose list of GPU architectures (TORCH_CUDA_ARCH_LIST) has
    `capability`, as 9.0.
    """
    pattern = folder("sm").name
    for path in sorted(folder("sm").parent.glob(f"{pattern}*/{name}/{name}.so")):
        listed = path.parent.parent.name.removeprefix(pattern).split("_")
        if capability in [one.removesuffix("+PTX") for one in listed]:
            return path
    return None


def cpu_architecture() -> str:
    """This processor, with its instruction sets: DeepSpeed compiles with -march=native."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
