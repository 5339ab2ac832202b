"""What every row of benchmarks/ carries beside its numbers: machine, versions, command; and how it
is appended.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from hpc_llm.storage.files import write_atomic
from hpc_llm.training import allocator

ROOT = Path(__file__).resolve().parent.parent.parent
ALLOCATOR_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "PYTORCH_", "LD_PRELOAD")


def append(
    page: Path, introduction: str, title: str, body: Sequence[str], packages: Sequence[str]
) -> None:
    """A dated section at the end of `page`, which begins with `introduction`. Nothing written
    before is touched.
    """
    Section(page, introduction, title, packages).write(body)


class Section:
    """A section at the end of a page that is written again as it grows: what ends a bench takes no
    row with it.
    """

    def __init__(self, page: Path, introduction: str, title: str, packages: Sequence[str]) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        facts = [
            f"- machine: {machine()}",
            f"- versions: {versions(packages)}",
            f"- command: `{command()}`",
        ]
        self._page = page
        self._introduction = introduction
        self._head = ["", f"## {now}: {title}", "", *facts, ""]
        self._written = ""

    def write(self, body: Sequence[str]) -> None:
        """Put `body` in the place of what the section had; the rest of the page stays as it is."""
        self._page.parent.mkdir(parents=True, exist_ok=True)
        text = self._page.read_text() if self._page.exists() else self._introduction.strip() + "\n"
        section = "\n".join([*self._head, *body]) + "\n"
        before, found, after = text.rpartition(self._written) if self._written else ("", "", "")
        write_atomic(self._page, before + section + after if found else text + section)
        self._written = section


def machine() -> str:
    """Processor with its widest vectors, cores, memory, GPUs, and whether CPU ranks find tcmalloc;
    no name.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    vectors = [
        name
        for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if name in known.get("flags", "").split()
    ]
    model = " ".join([known.get("model name", ""), *(f"({name})" for name in vectors[-1:])]).strip()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = [f"{model or platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"]
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        words += subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        words.append("no NVIDIA GPU")
    return ", ".join([*words, *(["tcmalloc"] if allocator.library() else [])])


def versions(packages: Sequence[str]) -> str:
    """Python, `packages` and the commit that was measured."""
    found = [f"{name} {version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found, f"hpc_llm {_commit()}"])


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "hpc_llm", "conf").strip()
        return git("rev-parse", "--short", "HEAD").strip() + (
            " with local changes" if changed else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "outside git"


def command() -> str:
    """What was typed, with the environment that changes how memory is allocated; folders elsewhere
    by name alone.
    """
    words = [Path(word).name.upper() if word.startswith("/") else word for word in sys.argv[1:]]
    settings = [
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(ALLOCATOR_SETTINGS)
    ]
    return shlex.join([*settings, "python", os.path.relpath(sys.argv[0], ROOT), *words])


def python_path() -> str:
    """For processes of a bench: the project before all that is importable here."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def spread(values: Sequence[float], digits: int) -> str:
    """`median (min–max)`."""
    return (
        f"{statistics.median(values):.{digits}f} "
        f"({min(values):.{digits}f}–{max(values):.{digits}f})"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows]]
