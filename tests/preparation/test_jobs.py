from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.preparation import jobs
from hpc_llm.preparation.claims import Claims
from hpc_llm.preparation.jobs import Job, JobRunner
from hpc_llm.preparation.workers import Workers


def touch(path: Path, tokens: int) -> int:
    path.touch(exist_ok=False)
    return tokens


def die(path: Path) -> int:
    os._exit(9)


def some_jobs(folder: Path, count: int) -> list[Job]:
    return [
        Job(folder / f"{number}", number, partial(touch, folder / f"{number}", 10))
        for number in range(count)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_and_what_is_there_already_is_left(
    tmp_path: Path, workers: int
) -> None:
    seen: list[tuple[str, int, int, int]] = []
    (tmp_path / "3").touch()
    with Workers(workers) as pool:
        JobRunner(pool, lambda *said: seen.append(said), print).do("making", some_jobs(tmp_path, 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in range(8)]
    assert seen[0] == ("making", 0, 28, 0)
    assert seen[1] == ("making", 3, 28, 0)
    assert seen[-1] == ("making", 28, 28, 70)


def test_what_another_machine_is_at_is_left_to_it_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    others = Claims(tmp_path / "claims", 1)
    assert others.take("work-0")
    own = Claims(tmp_path / "claims", 2)
    assert not own.take("work-0")
    made: list[str] = []

    def finish(seconds: float) -> None:
        """In place of waiting: the other machine ends its job."""
        made.append("waited")
        assert not (work / "0").exists()
        assert (work / "1").exists()
        (work / "0").touch()

    monkeypatch.setattr(jobs.time, "sleep", finish)
    with Workers(1) as pool:
        JobRunner(pool, lambda *_: None, print, own).do("making", some_jobs(work, 2))
    assert made == ["waited"]


def test_a_machine_without_a_sign_of_life_has_no_claims(tmp_path: Path) -> None:
    assert Claims(tmp_path, 1).take("a")
    os.utime(tmp_path / ".task-1", (0, 0))  # its last sign
    own = Claims(tmp_path, 2)
    assert own.take("a")
    assert not own.take("a"), "it is under way here"


def test_a_task_that_comes_back_takes_up_its_own_claims(tmp_path: Path) -> None:
    assert Claims(tmp_path, 1).take("a")
    assert Claims(tmp_path, 1).take("a")


def test_a_worker_that_is_killed_is_a_line_for_the_user(tmp_path: Path) -> None:
    with (
        Workers(2) as pool,
        pytest.raises(InputError, match=r"data\.workers=2: a worker process was killed"),
    ):
        JobRunner(pool, lambda *_: None, print).do(
            "making", [Job(tmp_path / "a", 1, partial(die, tmp_path))]
        )
