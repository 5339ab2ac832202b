"""submitit hands over our script: what is run, what is left, and how failures differ."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from hpc_llm.slurm import executor
from hpc_llm.slurm.client import SlurmRefused, SlurmUnavailable
from hpc_llm.slurm.records import Submission


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's script; commands of Slurm are looked for in tmp_path/bin first."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    command(tmp_path, "srun", "")  # submitit asks whether it is there
    run = tmp_path / "a run"
    run.mkdir()
    (run / "job.sbatch").write_text("#!/bin/bash\n")
    return run / "job.sbatch"


def command(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_sbatch_gets_the_runs_own_script_and_nothing_of_submitit_is_left(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    command(
        tmp_path,
        "sbatch",
        f'cd "{tmp_path}"; echo "$@" >words; env >env; echo Submitted batch job 4711',
    )
    assert executor.submit(script) == Submission(4711)
    assert (tmp_path / "words").read_text() == f"{script}\n"
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "SLURM_CONF" in names
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & names
    assert [path.name for path in script.parent.iterdir()] == ["job.sbatch"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert os.environ["SLURM_JOB_ID"] == "1"


def test_what_a_site_says_around_sbatchs_answer_is_kept_and_not_taken_for_it(
    script: Path, tmp_path: Path
) -> None:
    moved = "sbatch: note: moved to partition long"
    command(
        tmp_path,
        "sbatch",
        f'echo "limits of job 99 apply"; echo "{moved}" >&2; echo Submitted batch job 30; echo bye',
    )
    assert executor.submit(script) == Submission(30, ("limits of job 99 apply", moved, "bye"))


def test_options_of_this_submission_stand_before_the_script(script: Path, tmp_path: Path) -> None:
    command(tmp_path, "sbatch", f'cd "{tmp_path}"; echo "$@" >words; echo Submitted batch job 4711')
    executor.submit(script, ["--dependency=afterok:7"])
    assert (tmp_path / "words").read_text() == f"--dependency=afterok:7 {script}\n"


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            'echo "sbatch: error: invalid partition specified: x" >&2; exit 1',
            SlurmRefused,
            "invalid partition",
        ),
        ('echo "sbatch: unrecognized option" >&2; exit 255', SlurmRefused, "unrecognized option"),
        (
            'echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
            SlurmUnavailable,
            "timed out",
        ),
        ("kill -KILL $$", SlurmUnavailable, "sbatch"),
        ("exit 1", SlurmUnavailable, "ended with status 1"),
        ("exec sleep 9", SlurmUnavailable, "no answer within 1 s"),
        ("echo thanks", SlurmUnavailable, "thanks"),
        (
            'rm -r "${0%/*}"/../scratch/*; echo Submitted batch job 4711',
            SlurmUnavailable,
            "No such file",
        ),
    ],
)
def test_what_slurm_refused_is_told_from_what_nobody_knows(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(executor, "SBATCH_TIMEOUT_S", 1)
    command(tmp_path, "sbatch", text)
    with pytest.raises(error, match=said) as raised:
        executor.submit(script)
    assert "\n" not in str(raised.value)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
