"""Names inside a run directory, in one file."""

from __future__ import annotations

import ast
from pathlib import Path

from hpc_llm.runs.layout import RunLayout
from tests.runs.machine import REPOSITORY

LAYOUT = RunLayout(Path("/runs/first"))
PATHS = {
    name
    for name, value in vars(RunLayout).items()
    if isinstance(value, property) and name != "name"
}


def strings(path: Path) -> set[str]:
    """String constants of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs
    )
    return {node.value for node in constants if isinstance(node.value, str)}


def test_every_path_is_inside_the_run_and_its_own() -> None:
    paths = [getattr(LAYOUT, name) for name in PATHS]
    assert all(LAYOUT.path in path.parents for path in paths)
    assert len(set(paths)) == len(paths) >= 10
    assert LAYOUT.name == "first"


def test_attempts_and_ranks_sort_by_number() -> None:
    assert LAYOUT.attempt(3) == Path("/runs/first/attempts/0003")
    assert LAYOUT.supervisor_log(3) == LAYOUT.attempt(3) / "supervisor.log"
    assert LAYOUT.rank_log(3, 12) == LAYOUT.attempt(3) / "rank-0012.log"
    logs = [
        LAYOUT.rank_log(attempt, rank) for attempt in (1, 2, 10, 200) for rank in (0, 2, 11, 439)
    ]
    assert sorted(logs) == logs


def test_a_job_finds_the_folders_that_it_writes_into(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.make_folders()
    layout.make_folders()  # a run that is submitted again has them
    for folder in (layout.attempts, layout.checkpoints, layout.ledger, layout.slurm):
        assert folder.is_dir()
    assert {path.name for path in tmp_path.iterdir()} <= {
        getattr(layout, name).relative_to(tmp_path).parts[0] for name in PATHS
    }


def test_no_other_file_spells_a_name_of_the_run_directory() -> None:
    names = {getattr(LAYOUT, name).name for name in PATHS}
    names = {name for name in names if "." in name[1:]} | {
        "attempts",
        "checkpoints",
        "supervisor.log",
    }
    package = REPOSITORY / "hpc_llm"
    guilty = {
        str(path.relative_to(package)): strings(path) & names
        for path in package.rglob("*.py")
        if path != package / "runs" / "layout.py"
    }
    assert {"config.json", "plan.json", "job.sbatch", "metrics.jsonl"} <= names
    assert {path: found for path, found in guilty.items() if found} == {}
