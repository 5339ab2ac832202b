"""What ends a bench takes no row with it, and a case that cannot run is a row that says so."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BENCH.parents[1]), "OMP_NUM_THREADS": "1"}
CASE = (
    '{"arm": "bare", "words": [], "device": "cpu", "clock": "wall", "warmup": 1, '
    '"turn_steps": 1, "most_turns": 1}'
)
HOISTED = """
import torch
from attention import hoisted
from hpc_llm.model.backends.flex import biased
from hpc_llm.model.positions import alibi_slopes

slopes, h = alibi_slopes(12, 8.0), torch.arange(12)[:, None, None]
i, j = torch.arange(60_000, 60_100)[:, None], torch.arange(100)
there, here = (way(slopes)(torch.zeros(()), 0, h, i, j) for way in (biased, hoisted))
ulp = slopes[:, None, None] * 65_536 * torch.finfo(torch.float32).eps
assert ((here - there).abs() <= ulp).all()
"""


def bench(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def test_a_section_grows_in_its_place(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_record", BENCH / "record.py")
    assert spec is not None and spec.loader is not None
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    page = tmp_path / "rows.md"
    one, two = (record.Section(page, "# Rows", title, []) for title in ("one", "two"))
    one.write(["| a |"])
    assert page.read_text().endswith("| a |\n")
    two.write(["| b |"])
    one.write(["| a |", "| c |"])
    lines = [line for line in page.read_text().splitlines() if line and not line.startswith("- ")]
    assert lines[0] == "# Rows"
    assert [line.rpartition(": ")[2] for line in lines[1:]] == [
        "one",
        "| a |",
        "| c |",
        "two",
        "| b |",
    ]


@pytest.mark.slow
def test_a_bias_that_no_gpu_holds_is_not_made(tmp_path: Path) -> None:
    shape = (
        "--tokens",
        "64",
        "--lengths",
        "64,8256",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--head-size",
        "16",
    )
    done = bench(
        "attention",
        *shape,
        "--documents",
        "1",
        "--backends",
        "sdpa",
        "--rounds",
        "1",
        "--out",
        f"{tmp_path}/a.md",
    )
    assert done.returncode == 0, done.stderr
    short, long = (tmp_path / "a.md").read_text().splitlines()[-2:]
    assert short.startswith("| 64 × 1 | 1 | sdpa |") and "not possible" not in short
    assert long.startswith("| 8256 × 1 | 1 | sdpa | not possible: a bias of")


@pytest.mark.slow
def test_alibi_written_otherwise_is_alibi() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOISTED], cwd=BENCH, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_case_of_memory_that_cannot_run_is_a_row(tmp_path: Path) -> None:
    case = ("--models", "mpt-tiny", "--precisions", "bf16", "--stages", "7")
    done = bench("memory", *case, "--out", f"{tmp_path}/m.md")
    assert done.returncode == 1
    rows = (tmp_path / "m.md").read_text().splitlines()[-2:]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| mpt-tiny", "bf16", "7", way] for way in ("no", "yes")
    ]
    assert all("not possible: " in row and "train.zero_stage=7" in row for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_an_arm_that_fails_leaves_the_others_theirs(alone: bool, tmp_path: Path) -> None:
    words = (
        "--models mpt-tiny --precisions bf16 --seq-len 32 --batch 2 --rounds 1 --turns 1 "
        "--turn-steps 1 --warmup 1"
    )
    arms = ("--arms", "bare;bare: train.micro_batch=3", *["--alone"] * alone)
    done = bench(
        "train",
        *words.split(),
        "--max-others",
        "1",
        "--patience",
        "0",
        *arms,
        "--out",
        f"{tmp_path}/t.md",
    )
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "t.md").read_text()
    assert "\n| bare | " in rows
    assert "\nbare: train.micro_batch=3: not possible, " in rows


@pytest.mark.slow
def test_an_arm_whose_bench_is_gone_takes_nothing_of_the_device() -> None:
    command = [sys.executable, str(BENCH / "arms.py"), CASE]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["@ready", "0"]
