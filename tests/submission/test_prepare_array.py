"""Several machines at one preparation, played by processes: all that a Slurm array does but for
Slurm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.preparation.pipeline import prepare
from hpc_llm.submission import prepare_array
from hpc_llm.submission.prepare_array import render_prepare_script
from tests.configs import make_config
from tests.runs.machine import REPOSITORY
from tests.waiting import until

NUM_SOURCES = 8


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """Several sources, so that every stage has several jobs."""
    modules = sorted((REPOSITORY / "hpc_llm").rglob("*.py"))
    for number, path in enumerate(modules):
        folder = tmp_path / "text" / f"s{number % NUM_SOURCES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.py").write_bytes(path.read_bytes())
    sources = [f"data.sources.s{number}.path=s{number}" for number in range(NUM_SOURCES)]
    root = f"run.root={tmp_path / 'runs'}"
    return (
        "data=files",
        f"data.source={tmp_path / 'text'}",
        *sources,
        root,
        "model.vocab_size=512",
        "data.workers=1",
    )


@pytest.fixture
def task() -> Iterator[Callable[[int, Path], subprocess.Popen[str]]]:
    """`task(number, work)` starts a task of an array; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(number: int, work: Path) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "SLURM_ARRAY_TASK_ID": str(number),
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-m", "hpc_llm.prepare", f"join={work}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


Task = Callable[[int, Path], "subprocess.Popen[str]"]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_any_number_of_tasks_makes_the_bytes_of_one_though_one_is_killed(
    task: Task, words: tuple[str, ...], tmp_path: Path
) -> None:
    config = make_config(*words)
    shared = tmp_path / "shared"
    prepare(config, tmp_path / "alone")
    work = prepare_array.begin(config, shared).parent
    tasks = [task(number, work) for number in range(3)]
    scans = work / "scan"
    until(lambda: bool(list(scans.glob("[!.]*"))), 60, "a first result", poll_s=0.001)
    tasks[1].send_signal(signal.SIGKILL)
    tasks[1].communicate(timeout=60)
    tasks.append(task(1, work))  # requeued by Slurm: its claims are its own
    for process in (tasks[0], *tasks[2:]):
        said = process.communicate(timeout=100)[0]
        assert process.returncode == 0, said
    assert content(shared) == content(tmp_path / "alone")
    assert not work.exists()
    assert task(7, work).wait(60) == 0, "a task that comes too late has nothing to do"


def test_a_corpus_that_cannot_be_used_fails_every_task_with_the_same_line(
    task: Task, words: tuple[str, ...], tmp_path: Path
) -> None:
    for path in (tmp_path / "text").rglob("*.py"):
        path.write_bytes(b"caf\xe9")
    process = task(0, prepare_array.begin(make_config(*words), tmp_path / "shared").parent)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert "prepare: data.max_reject_fraction=0.2: " in said
    assert "Traceback" not in said


def test_tasks_find_text_and_tokenizer_from_wherever_they_stand(
    task: Task, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = [word.replace(f"{tmp_path}/", "") for word in words]
    work = prepare_array.begin(make_config(*relative), tmp_path / "shared").parent
    monkeypatch.chdir("/")
    process = task(0, work)
    assert process.wait(100) == 0, process.communicate()[0]


def test_nobody_joins_what_nobody_began(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"join=.*/none\.partial-1: prepare\.json: No such file.*; .* not begun"
    ):
        prepare_array.join(tmp_path / "none.partial-1")


def test_the_script_asks_for_nodes_of_cores_and_no_gpu() -> None:
    config = make_config(
        "cluster=a100x64",
        "data=files",
        "data.source=/text",
        "cluster.account=me",
        "cluster.nodes=20",
    )
    text = render_prepare_script(
        config,
        work="/data/out 1.partial-ab",
        logs="/data/out 1.logs",
        code="/runs/.code/ab",
        python="/venv/bin/python",
        name="prepare-out",
    )
    assert text == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=prepare-out\n"
        "#SBATCH --account=me\n"
        "#SBATCH --array=0-19\n"
        "#SBATCH --nodes=1\n"
        "#SBATCH --ntasks-per-node=1\n"
        "#SBATCH --cpus-per-task=128\n"
        "#SBATCH --mem=0\n"
        "#SBATCH --time=1-00:00:00\n"
        "#SBATCH --requeue\n"
        "#SBATCH --open-mode=append\n"
        '#SBATCH --output="/data/out 1.logs/%A_%a.log"\n'
        '#SBATCH --chdir="/data/out 1.logs"\n'
        "#SBATCH --exclusive\n"
        "\n"
        "set -eo pipefail\n"
        "cd -- /runs/.code/ab\n"
        "exec /venv/bin/python -m hpc_llm.prepare 'join=/data/out 1.partial-ab'\n"
    )


def test_the_script_runs_in_the_users_environment() -> None:
    words = ["cluster=a100x64", "cluster.setup=[module load python]", "cluster.exports={A: b c}"]
    config = make_config(*words, "cluster.wrapper=[apptainer,exec,a.sif]")
    text = render_prepare_script(
        config, work="/out", logs="/logs", code="/code", python="python3", name="p"
    )
    assert text.endswith(
        "module load python\nexport A='b c'\ncd -- /code\n"
        "exec apptainer exec a.sif python3 -m hpc_llm.prepare join=/out\n"
    )
    bad = make_config("cluster=a100x64", "cluster.sbatch={array: '1'}", "cluster.partition='a\"b'")
    with pytest.raises(InputError) as error:
        render_prepare_script(
            bad, work="/out", logs="/logs", code="/code", python="python3", name="p"
        )
    assert len(error.value.problems) == 2
