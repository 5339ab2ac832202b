"""Commands that are printed can be typed as they stand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_llm.config import hints

REPOSITORY = Path(__file__).resolve().parent.parent.parent
VERBS = ("submit", "plan", "prepare", "freeze", "build")


def _environment(folder: Path) -> Path:
    """A folder with an interpreter, as `python -m venv` makes it."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    return python


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of an environment that is not active, with the shell beside it."""
    path = _environment(tmp_path / ".venv")
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return path


def test_an_interpreter_below_the_folder_is_named_from_there(python: Path) -> None:
    assert hints.command("status", "my runs") == ".venv/bin/python -m hpc_llm.status 'my runs'"


def test_one_elsewhere_is_named_by_its_whole_path(
    python: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("else where"))
    assert hints.command("plan") == f"{python} -m hpc_llm.plan"


def test_an_active_one_is_python(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(python.parent))
    assert hints.command("plan") == "python -m hpc_llm.plan"


def test_the_python_of_another_environment_is_not_taken_for_it(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _environment(tmp_path / "other")
    monkeypatch.setenv("PATH", str(other.parent))
    assert hints.python() == ".venv/bin/python"


@pytest.mark.parametrize("verb", VERBS)
def test_without_the_packages_a_line_says_where_they_are(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _run(verb)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "has no package hydra; " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["submit", "status", "supervise", "train", "__main__"])
def test_an_old_python_is_told_in_a_line(module: str) -> None:
    as_old = "sys.version_info = (3, 9, 2); "
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _run(module, as_old)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is Python 3.9, and 3.10 or later is needed" in done.stderr
    assert done.stderr.count("\n") == 1


def _run(verb: str, before: str = "") -> str:
    """Python that runs a verb as `python -m` does, without any package."""
    return (
        f"import runpy, sys; sys.path.insert(0, {os.fspath(REPOSITORY)!r}); {before}"
        f"runpy.run_module('hpc_llm.{verb}', run_name='__main__')"
    )


def test_the_file_that_tells_it_parses_in_the_pythons_that_it_is_for() -> None:
    source = (REPOSITORY / "hpc_llm" / "__init__.py").read_text()
    ast.parse(source, feature_version=(3, 4))
