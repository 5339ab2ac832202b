"""Commands of this program as the user's shell takes them, for whatever names one.

Standard library only, as the supervisor.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_ENVIRONMENT = ".venv"  # what tools/quickstart.sh makes


def command(verb: str, *words: str) -> str:
    """`python -m hpc_llm.VERB words…` for the interpreter that runs, words quoted for a shell."""
    return " ".join([python(), "-m", f"hpc_llm.{verb}", *map(shlex.quote, words)])


def python() -> str:
    """The interpreter that runs, as short as it can be typed here, quoted for a shell.

    `python` where PATH leads to it (an activated environment), a path from this folder on where it
    lies below, else its whole path.
    """
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and _is_this(Path(found)):
            return name
    return shlex.quote(_from_here(sys.executable))


def _is_this(program: Path) -> bool:
    """Whether it is the interpreter that runs. All environments link to one file: folders count."""
    here = Path(sys.executable)
    try:
        return program.parent.samefile(here.parent) and program.samefile(here)
    except OSError:
        return False


def _from_here(path: str) -> str:
    """`path` relative to the current folder if it lies below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        return path


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether what could not be imported is a module of this program, and so a bug."""
    return (error.name or "").partition(".")[0] == "hpc_llm"


def not_installed(error: ModuleNotFoundError) -> str:
    """One line for a package that this interpreter lacks: which one, and what has it."""
    lacks = f"{sys.executable or 'this Python'} has no package {(error.name or '?').split('.')[0]}"
    other = _CHECKOUT / _ENVIRONMENT
    if not (other / "bin" / "python").exists():
        make = _CHECKOUT / "tools" / "quickstart.sh"
        if not make.exists():
            return f"{lacks}; install hpc_llm there with pip"
        quickstart = shlex.quote(_from_here(str(make)))
        return f"{lacks}; {quickstart} makes an environment that has all of them"
    if Path(sys.prefix) == other:
        return f"{lacks}; tools/quickstart.sh completes {_from_here(str(other))}"
    activate = shlex.quote(_from_here(str(other / "bin" / "activate")))
    return f"{lacks}; type first: . {activate}      # from then on `python` is the one that has it"
