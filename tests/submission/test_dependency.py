"""run.depends_on: what it names, what Slurm is told of it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_llm.config.building import to_dict
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import identity
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.submission import dependency
from hpc_llm.submission.arrays import group_by_shape
from tests.configs import make_config, planned


def asking(root: Path, depends_on: str | None, name: str = "mine") -> RunConfig:
    config = make_config("cluster=local-slurm")
    return replace(
        config, run=replace(config.run, root=str(root), name=name, depends_on=depends_on)
    )


def other(root: Path, path: str, *jobs: str, complete: bool = False) -> RunLayout:
    layout = RunLayout(root / path)
    layout.make_folders()
    layout.config.write_text(json.dumps(to_dict(make_config())))
    for job in jobs:
        Ledger(layout.ledger, "submit").write("submitted", job=job)
    if complete:
        Ledger(layout.ledger, "supervisor-0001").write("completed", attempt=1)
    return layout


def problems(config: RunConfig) -> list[str]:
    return dependency.problems(config, identity.layout_for(config))


def queue(*addresses: str) -> list[QueuedJob]:
    return [
        QueuedJob(address, 1, "PENDING", "", 1, None, None, "", "", "") for address in addresses
    ]


@pytest.mark.parametrize("name", ["none", "../other", "/tmp", "a/b"])
def test_a_run_that_is_not_below_the_root_is_an_error_before_the_queue(
    tmp_path: Path, name: str
) -> None:
    other(tmp_path, "other")
    (problem,) = problems(asking(tmp_path / "runs", name))
    assert problem.startswith(
        f"run.depends_on={name}: no run or sweep of that name lies in {tmp_path / 'runs'}"
    )


def test_a_run_does_not_wait_for_itself(tmp_path: Path) -> None:
    other(tmp_path, "mine")
    assert "would wait for itself" in problems(asking(tmp_path, "mine"))[0]
    other(tmp_path, "theirs")
    assert problems(asking(tmp_path, "theirs")) == []
    assert problems(asking(tmp_path, None)) == []


def test_slurm_is_told_of_the_job_that_the_run_has_now(tmp_path: Path) -> None:
    other(tmp_path, "first", "7", "9")
    config = asking(tmp_path, "first")
    assert dependency.waits([config], queue("9", "7", "8")) == {"first": "afterok:9"}


def test_of_a_sweep_all_runs_that_are_not_complete_are_waited_for(tmp_path: Path) -> None:
    other(tmp_path, "s/a", "12_0")
    other(tmp_path, "s/b", "12_1", complete=True)
    other(tmp_path, "s/c", "12_2")
    assert problems(asking(tmp_path, "s")) == []
    assert dependency.waits([asking(tmp_path, "s")], queue("12_0", "12_2")) == {
        "s": "afterok:12_0:12_2"
    }
    assert dependency.waits([asking(tmp_path, "s/b")], []) == {"s/b": ""}


def test_a_run_that_failed_is_nothing_to_wait_for(tmp_path: Path) -> None:
    other(tmp_path, "first", "7")
    with pytest.raises(InputError, match="first is neither complete nor has it a job"):
        dependency.waits([asking(tmp_path, "first")], queue("8"))


def test_in_the_foreground_it_must_be_complete(tmp_path: Path) -> None:
    other(tmp_path, "first")
    with pytest.raises(InputError, match="first is not complete"):
        dependency.require_complete(asking(tmp_path, "first"))
    other(tmp_path, "first", complete=True)
    dependency.require_complete(asking(tmp_path, "first"))
    dependency.require_complete(asking(tmp_path, None))


def test_it_changes_where_a_run_stands_in_the_queue_and_not_what_it_learns(tmp_path: Path) -> None:
    plain = asking(tmp_path, None)
    waiting = asking(tmp_path, "first")
    assert identity.identity(plain) == identity.identity(waiting)
    assert len(list(group_by_shape([planned(plain), planned(waiting)], 10))) == 2
