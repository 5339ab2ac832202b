"""What is changed in DeepSpeed and torch exists there, and other releases of them are refused."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs.orders import ExitCode
from hpc_llm.zero.known_versions import KNOWN, problem_with, refuse_unknown_versions
from tests.chaos.local_runs import run


@pytest.fixture(scope="module")
def patches() -> Any:
    """The list; DeepSpeed must be told the device before it is imported."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from hpc_llm.zero import patches

    return patches


def missing(name: str) -> bool:
    """Whether the installed library has no such name.

    What is set only in instances, by an assignment in a method, is looked for in their source.
    """
    module, _, path = name.partition(":")
    holder = importlib.import_module(module)
    *owners, attribute = path.split(".")
    owner: Any = holder
    for step in owners:
        owner = getattr(owner, step)
    if hasattr(owner, attribute):
        return False
    return f".{attribute}" not in source_of(owner) and f'"{attribute}"' not in source_of(owner)


def source_of(owner: Any) -> str:
    return inspect.getsource(owner)


def test_every_name_that_is_replaced_or_read_is_there(patches: Any) -> None:
    listed = [*patches.PROCESS, *patches.ENGINE, *patches.WHERE_NEEDED]
    names = [name for patch in listed for name in patch.replaces]
    assert len(names) > 10
    assert [name for name in [*names, *patches.READ] if missing(name)] == []
    assert missing("torch.optim:Optimizer.no_such_thing"), "or the test would see nothing"


def test_every_patch_says_why(patches: Any) -> None:
    listed = [*patches.PROCESS, *patches.ENGINE, *patches.WHERE_NEEDED]
    assert all(patch.reason.endswith(".") and patch.replaces for patch in listed)
    assert all(patches.READ.values())


def test_nothing_is_changed_by_an_import() -> None:
    """And all that is listed for the process is, by the call."""
    program = """
import torch
before = (torch.compile, torch.optim.Adam.step)
from hpc_llm.zero import engine, patches
from deepspeed.runtime import utils
assert (torch.compile, torch.optim.Adam.step) == before
assert not hasattr(utils.is_invalid_grad_norm, "__wrapped__")
patches.apply_to_process()
patches.apply_to_process()
assert torch.optim.Adam.step is not before[1]
assert not hasattr(utils.is_invalid_grad_norm.__wrapped__, "__wrapped__"), "applied twice"
import deepspeed, importlib
assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
for name in patches.PROCESS[2].replaces:
    module, _, function = name.partition(":")
    assert hasattr(getattr(importlib.import_module(module), function), "__wrapped__"), name
print("done")
"""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


def test_the_installed_releases_are_known() -> None:
    refuse_unknown_versions()


@pytest.mark.parametrize("version", ["0.19.8", "0.19.8+cu130"])
@pytest.mark.parametrize("torch", ["2.10.0", "2.11.0a0+nv26.1", "2.13.0+cpu"])
def test_builds_of_a_known_release_are_known(version: str, torch: str) -> None:
    assert problem_with({"deepspeed": version, "torch": torch}) is None


@pytest.mark.parametrize(
    ("deepspeed", "torch", "problem"),
    [
        (
            "0.19.7",
            "2.13.0",
            "deepspeed 0.19.7 is installed, the insides of 0.19.8 are known: "
            "python -m pip install 'deepspeed==0.19.8'",
        ),
        (
            "0.19.80",
            None,
            "deepspeed 0.19.80 is installed, the insides of 0.19.8 are known; torch is not "
            "installed, the insides of 2.10, 2.11, 2.12, 2.13 are known: "
            "python -m pip install 'deepspeed==0.19.8' 'torch>=2.10,<2.14'",
        ),
        (
            "0.19.8",
            "2.14.0",
            "torch 2.14.0 is installed, the insides of 2.10, 2.11, 2.12, 2.13 are known: "
            "python -m pip install 'torch>=2.10,<2.14'",
        ),
    ],
)
def test_another_release_is_refused_in_one_line(
    deepspeed: str, torch: str | None, problem: str
) -> None:
    assert problem_with({"deepspeed": deepspeed, "torch": torch}) == problem


def test_what_pip_installs_is_what_is_known() -> None:
    requirements = (Path(__file__).parents[2] / "setup.cfg").read_text().split()
    assert {known.requirement for known in KNOWN} <= set(requirements)


@pytest.mark.slow
def test_a_rank_that_finds_another_release_ends_as_one_that_is_configured_wrongly(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "known")
    assert done.status == 0, done.output
    folder = tmp_path / "other"
    (folder / "deepspeed-0.20.0.dist-info").mkdir(parents=True)
    (folder / "deepspeed-0.20.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.20.0\n"
    )
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    rank = subprocess.run(
        [sys.executable, "-m", "hpc_llm.train", str(done.layout.path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert rank.returncode == ExitCode.CONFIG_ERROR
    (line,) = rank.stderr.splitlines()
    assert "deepspeed 0.20.0 is installed" in line
    assert "pip install 'deepspeed==0.19.8'" in line
