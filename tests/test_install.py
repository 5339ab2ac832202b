"""A wheel carries everything: code, configuration, commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def test_an_installed_wheel_plans_and_submits_away_from_the_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "source"  # building writes beside setup.cfg
    tracked = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).split()
    for name in tracked:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = REPOSITORY / name
        if source.is_symlink():
            target.symlink_to(os.readlink(source))  # noqa: PTH115
        elif source.exists():
            target.write_bytes(source.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)],
        cwd=copy,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def command(*words: str) -> str:
        return subprocess.check_output(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, text=True
        )

    where = subprocess.check_output(
        [sys.executable, "-c", "import hpc_llm; print(hpc_llm.__file__)"],
        cwd=tmp_path,
        env=environment,
        text=True,
    )
    assert Path(where.strip()).is_relative_to(site)
    assert "6.649 B parameters" in command("hpc_llm.plan", "+cluster=a100x64", "model=mpt-7b")
    assert "exec " in command(
        "hpc_llm", "submit", "+cluster=a100x64", "model=mpt-7b", "dry_run=true"
    )
    assert (site / "bin" / "hpc-llm").exists()
