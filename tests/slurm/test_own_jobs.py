"""Which job in the queue is the one that was submitted for a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.slurm import own_jobs
from hpc_llm.slurm.records import QueuedJob


def job(
    address: str, work_dir: str = "/runs/s", *, name: str = "s", state: str = "PENDING"
) -> QueuedJob:
    number = int(address.partition("_")[0])
    return QueuedJob(address, number, state, "", 1, None, None, "", name, work_dir)


QUEUE = [
    job("7", state="FAILED"),
    job("8_0"),
    job("8_1"),
    job("9_1", name="s-2"),
    job("10", "/runs/s/code"),
    job("11", "/elsewhere"),
]


@pytest.mark.parametrize(
    ("more", "addresses"),
    [
        ({}, ["8_0", "8_1", "9_1"]),
        ({"ended": True}, ["7", "8_0", "8_1", "9_1"]),
        ({"name": "s"}, ["8_0", "8_1"]),
        ({"tasks": {"1", "2"}}, ["8_1", "9_1"]),
        ({"tasks": {""}, "ended": True}, ["7"]),
        ({"tasks": set()}, []),
        ({"known": [8]}, ["9_1"]),
        ({"known": {"8_1"}}, ["8_0", "9_1"]),
        ({"folder_of": own_jobs.run_of_code}, ["10"]),
    ],
)
def test_a_job_is_known_by_folder_name_and_task(more: dict, addresses: list[str]) -> None:
    jobs = own_jobs.find(QUEUE, {"/runs/s"}, **more)
    assert [each.address for each in jobs] == addresses


def test_a_folder_may_be_reached_by_another_path(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to("s")
    queue = [job("12_0", str(tmp_path / "link"))]
    folder = {str(tmp_path / "s")}
    assert own_jobs.find(queue, folder) == []
    assert own_jobs.find(queue, folder, folder_of=own_jobs.resolved) == queue
