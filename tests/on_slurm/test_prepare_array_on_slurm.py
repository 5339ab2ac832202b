"""`prepare +cluster=…` on a real Slurm: an array on two nodes makes the bytes of one process,
whatever is killed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_llm.data.manifest import read_manifest
from hpc_llm.preparation.pipeline import prepare
from tests.configs import make_config
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_SOURCES = 8


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for number, path in enumerate(sorted((REPOSITORY / "hpc_llm").rglob("*.py"))):
        folder = tmp_path / "text" / f"s{number % NUM_SOURCES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.py").write_bytes(path.read_bytes())
    sources = [f"data.sources.s{number}.path=s{number}" for number in range(NUM_SOURCES)]
    places = [
        f"data.source={tmp_path / 'text'}",
        f"data.out={tmp_path / 'data'}",
        f"run.root={tmp_path / 'runs'}",
    ]
    return ["data=files", *places, *sources, "model.vocab_size=512"]


@pytest.fixture
def prepare_on(
    slurm: SlurmCluster, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`prepare_on(words)` as a user types it, from the checkout; what it said."""
    monkeypatch.setattr(slurm, "env", {**slurm.env, "PYTHONPATH": str(REPOSITORY)})

    def go(*more: str) -> str:
        command = [sys.executable, "-m", "hpc_llm.prepare", "+cluster=local-slurm", *words, *more]
        return slurm.run(*command).stdout

    return go


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_array_makes_the_bytes_of_one_process(
    slurm: SlurmCluster, prepare_on: Callable[..., str], words: list[str], tmp_path: Path
) -> None:
    said = prepare_on("cluster.sbatch.hold=true")
    job = re.findall(r"submitted: array (\d+), into (.*)", said)
    assert [where for _, where in job] == [str(tmp_path / "data")]
    number = job[0][0]
    assert f"under way already: array {number}" in prepare_on(), "submitted once"

    slurm.run("scontrol", "release", number)
    slurm.wait_state(f"{number}_0", {"COMPLETED", "FAILED"}, timeout_s=120)
    slurm.wait_state(f"{number}_1", {"COMPLETED", "FAILED"}, timeout_s=120)
    logs = "".join(path.read_text() for path in (tmp_path / "data.logs").glob("*.log"))
    states = [slurm.job(f"{number}_{task}")["JobState"] for task in range(2)]
    assert states == ["COMPLETED", "COMPLETED"], logs
    assert "tokens/s" in logs

    prepare(make_config(*words, "data.workers=1"), tmp_path / "alone")
    assert content(tmp_path / "data") == content(tmp_path / "alone")
    assert read_manifest(tmp_path / "data").documents["in"] > 100
    assert "already prepared" in prepare_on()


def test_cancelled_it_goes_on_with_the_same_command(
    slurm: SlurmCluster,
    prepare_on: Callable[..., str],
    words: list[str],
    tmp_path: Path,
) -> None:
    (number,) = re.findall(r"array (\d+)", prepare_on())[:1]
    scans = "data.partial-*/scan/[!.]*.npz"
    until(lambda: bool(list(tmp_path.glob(scans))), 60, "a first result")
    slurm.run("scancel", "--signal=KILL", "--full", number)
    slurm.run("scancel", number)
    until(lambda: not slurm.squeue(), 60, "an empty queue")
    if not (tmp_path / "data").exists():
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(scans)}
        again = json.loads(prepare_on("json=true"))
        assert again["job_id"] != int(number)
        assert (
            kept.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob(scans)}.items()
        )
        until((tmp_path / "data" / "manifest.json").exists, 120, "the data")
    prepare(make_config(*words, "data.workers=1"), tmp_path / "alone")
    assert content(tmp_path / "data") == content(tmp_path / "alone")


def test_a_partition_that_is_not_there_is_a_line_and_nothing_is_queued(
    slurm: SlurmCluster, words: list[str], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "hpc_llm.prepare",
        "+cluster=local-slurm",
        *words,
        "cluster.partition=nowhere",
    ]
    done = slurm.run(*command, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("prepare: cluster=local-slurm: ")
    assert not slurm.squeue()
