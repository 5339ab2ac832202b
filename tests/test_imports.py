"""Imports run one way: the contracts of pyproject.toml hold, they see what breaks them, and real
processes agree.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_llm.runs import snapshot
from tests.runs.machine import REPOSITORY, python

# file → a line that breaks the contract of that name
VIOLATIONS = {
    "Imports run one way, and every room has its place": (
        "config/errors.py",
        "import hpc_llm.planning.batch",
    ),
    "Nothing that runs on a login node or in the batch shell imports torch": (
        "storage/files.py",
        "import torch",
    ),
    "The supervisor needs the standard library alone": ("recovery/policy.py", "import rich"),
    "One file imports Hydra": ("config/checks.py", "import omegaconf"),
    "DeepSpeed stays in zero": ("trackers/tensorboard.py", "import deepspeed"),
    "One file imports submitit": ("supervise/steps.py", "import submitit"),
    "The model knows its configuration and torch": (
        "model/loss.py",
        "import hpc_llm.slurm.environment",
    ),
    "Plan, script text, order, causes and policy are functions of data": (
        "planning/batch.py",
        "import random",
    ),
    "Nothing unpickles": ("data/shards.py", "import pickle"),
}


def lint_imports(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command that a developer runs, in `folder`."""
    program = Path(sys.executable).parent / "lint-imports"
    command = [str(program), "--no-logo", "--cache-dir", str(cache)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_contracts_hold(tmp_path: Path) -> None:
    done = lint_imports(REPOSITORY, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_breaks_a_contract_is_seen(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("conf", "__pycache__")
    shutil.copytree(REPOSITORY / "hpc_llm", tmp_path / "hpc_llm", ignore=ignored)
    shutil.copyfile(REPOSITORY / "pyproject.toml", tmp_path / "pyproject.toml")
    for name, line in VIOLATIONS.values():
        with (tmp_path / "hpc_llm" / name).open("a") as file:
            file.write(line + "\n")
    (tmp_path / "hpc_llm" / "utils.py").touch()  # a room without a place
    done = lint_imports(tmp_path, tmp_path / "cache")
    assert done.returncode == 1
    assert "- hpc_llm.utils\n" in done.stdout
    broken = {line for line in done.stdout.splitlines() if "BROKEN" in line}
    for contract in VIOLATIONS:
        assert any(line.startswith(contract) for line in broken), f"{contract}: not seen"
    assert len(broken) == len(VIOLATIONS), "a contract without a violation above"
    assert "KEPT" not in done.stdout


DRY_RUNS = {
    "submit": ["+cluster=a100x64", "model=mpt-7b", "cluster.partition=gpu", "dry_run=true"],
    "plan": ["experiment=mpt-7b", "json=true"],
    "prepare": ["data=files", "data.source=/no/such"],
    "status": ["."],
    "compare": ["."],
}


@pytest.mark.parametrize("verb", DRY_RUNS)
def test_a_login_node_never_waits_for_torch(tmp_path: Path, verb: str) -> None:
    program = (
        f"import sys; from hpc_llm.{verb} import main; status = main({DRY_RUNS[verb]!r})\n"
        "heavy = sorted({'torch', 'deepspeed', 'tensorboard', 'submitit'} & set(sys.modules))\n"
        "print(f'status {status}, heavy modules {heavy}')"
    )
    done = python("-c", program, cwd=tmp_path)
    expected = 2 if verb in ("prepare", "compare") else 0
    assert done.stdout.splitlines()[-1] == f"status {expected}, heavy modules []", done.stderr


def test_the_foreground_of_a_local_run_never_waits_for_torch(tmp_path: Path) -> None:
    program = (
        "import sys, hpc_llm.submission.local; print('torch' in sys.modules, 'deepspeed' "
        "in sys.modules)"
    )
    assert python("-c", program, cwd=tmp_path).stdout == "False False\n"


def test_the_supervisor_starts_with_nothing_but_python(tmp_path: Path) -> None:
    """No site-packages, no checkout: the run's snapshot of the code, on a node outside any
    container.
    """
    made = snapshot.make(tmp_path)
    program = (
        f"import json, sys; sys.path.insert(0, {str(made)!r})\n"
        "import hpc_llm.supervise.supervisor\n"
        "print(json.dumps([getattr(module, '__file__', None) for module in sys.modules.values()]))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    files = [file for file in json.loads(done.stdout) if file is not None]
    assert any(file.startswith(str(made)) for file in files)
    assert [file for file in files if "site-packages" in file] == []
    assert [file for file in files if file.startswith(str(REPOSITORY / "hpc_llm"))] == []
