from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_llm import freeze
from hpc_llm.config import hints
from hpc_llm.prepare import main


def test_prepare_sums_up_and_says_what_comes_next(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "data=files",
        f"data.source={corpus}",
        f"data.out={tmp_path / 'data'}",
        "model.vocab_size=512",
    ]
    assert main([*overrides, "data.workers=1"]) == 0
    shown = capsys.readouterr()
    assert "prepared in" in shown.out
    assert "40: " in shown.out
    assert "nats per token" in shown.out
    assert f"next: {hints.command('submit', 'data=files')}" in shown.out
    assert "tokenising: 0.4 MB" in shown.err
    assert main(overrides) == 0
    assert "already prepared" in capsys.readouterr().out


def test_every_mistake_is_a_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data=files", "data.source=/no/such", f"data.out={tmp_path / 'data'}"]
    assert main(overrides) == 2
    assert capsys.readouterr().err == (
        "prepare: data.source=/no/such: no such file or folder; give an existing one with "
        "data.source=PATH\n"
    )
    assert main(["data.vocabsize=3", "data.worker=2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(("num_bytes", "workers"), [(0, 1), (40_000, 1), (40_000, 2)])
def test_a_full_disk_is_a_line_with_the_path_and_the_remedy(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    num_bytes: int,
    workers: int,
) -> None:
    """At the first write, in this process, in a worker."""
    data = tmp_path / "data"
    words = ["data=files", f"data.source={corpus}", f"data.out={data}", "model.vocab_size=512"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        status = main([*words, f"data.workers={workers}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare: ")
    ]
    assert status == 1
    assert line.startswith(f"prepare: {data}")
    assert "; free space or quota there, or choose another data.out; the same command" in line


@pytest.mark.parametrize("verb", [main, freeze.main])
def test_a_sweep_is_for_other_verbs(
    verb: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(["run.seed=1,2", "-m"]) == 2
    assert capsys.readouterr().err.partition(": ")[2] == (
        "-m: a sweep is for submit and plan; here leave it out, and give each key one value\n"
    )
    assert verb(["run.seed=1,2"]) == 2
    assert capsys.readouterr().err.partition(": ")[2] == (
        "run.seed=1,2: several values are a sweep; submit and plan can; here give each key one "
        "value\n"
    )


def test_what_slurm_says_no_to_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    overrides = ["+cluster=a100x64", "cluster.partition=nope", f"run.root={tmp_path / 'runs'}"]
    assert main([*overrides, "test_only=true"]) == 2
    assert capsys.readouterr().err == (
        "prepare: cluster=a100x64: sbatch: invalid partition specified: nope\n"
    )
