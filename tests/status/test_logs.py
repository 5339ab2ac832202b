"""The right file of the right attempt, the first error first."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.runs import attempts
from hpc_llm.runs.layout import RunLayout
from hpc_llm.status import __main__ as verb
from hpc_llm.status import logs


def said(rank: int, second: int, level: str, text: str) -> str:
    return f"2026-01-02 03:04:{second:02d},000 rank {rank} {level} {text}\n"


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    layout = RunLayout(tmp_path / "one")
    layout.make_folders()
    layout.config.write_text("{}")
    return layout


def begin(run: RunLayout, *words: str) -> int:
    """An attempt whose ranks wrote these logs."""
    number = attempts.claim(run)
    run.supervisor_log(number).write_text("supervisor\n")
    for rank, text in enumerate(words):
        run.rank_log(number, rank).write_text(text)
    return number


def test_the_rank_that_failed_first_is_shown_and_its_error_before_all(run: RunLayout) -> None:
    begin(run, "old\n", "old\n")
    begin(
        run,
        said(0, 9, "ERROR", "RuntimeError: connection closed by peer"),
        said(1, 5, "INFO", "step 3")
        + said(1, 7, "ERROR", "ValueError: the true cause")
        + "last words\n",
    )
    found = logs.choose(run, None)
    assert found.path == run.rank_log(2, 1)
    first, *rest = logs.opening(found)
    assert (
        first
        == "first error (attempt 2, rank 1, 2026-01-02 03:04:07,000): ValueError: the true cause"
    )
    assert rest[-1] == "last words"
    assert logs.choose(run, 0).path == run.rank_log(2, 0)


def test_without_an_error_rank_0_of_the_newest_attempt_speaks(run: RunLayout) -> None:
    begin(run, said(0, 1, "ERROR", "of an attempt that is over"))
    begin(run, "fine\n", "fine too\n")
    assert list(logs.opening(logs.choose(run, None))) == [f"{run.rank_log(2, 0)}:", "fine"]


def test_before_the_ranks_the_supervisor_speaks_and_before_it_slurm(run: RunLayout) -> None:
    with pytest.raises(InputError, match="no logs yet"):
        logs.choose(run, None)
    for age, name in ((60, "12_0.log"), (0, "13_0.log")):
        (run.slurm / name).touch()
        os.utime(run.slurm / name, (1e9 - age,) * 2)
    assert logs.choose(run, None).path == run.slurm / "13_0.log"
    begin(run)
    assert logs.choose(run, None).path == run.supervisor_log(1)


def test_a_rank_that_is_not_there_is_refused_with_those_that_are(run: RunLayout) -> None:
    begin(run, "a\n", "b\n")
    with pytest.raises(InputError, match="ranks 0 to 1"):
        logs.choose(run, 2)


def test_following_goes_on_with_the_next_attempt_and_never_shows_half_a_line(
    run: RunLayout,
) -> None:
    begin(run, "one\n")
    log = run.rank_log(1, 0)
    acts = [
        lambda: log.write_text("one\ntwo\nthr"),
        lambda: log.write_text("one\ntwo\nthree\n"),
        lambda: begin(run),
        lambda: run.rank_log(2, 0).write_text("four\n"),
    ]
    lines = logs.follow(run, None, wait=lambda _: acts.pop(0)())
    assert list(islice(lines, 6)) == [
        f"{log}:",
        "one",
        "two",
        "three",
        f"{run.rank_log(2, 0)}:",
        "four",
    ]


def test_status_prints_the_log_of_one_run_and_asks_which_of_several(
    run: RunLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run, "hello\n")
    assert verb.main([str(run.path), "--logs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "hello"
    assert verb.main([str(run.path), "--rank", "0"]) == 2
    other = RunLayout(run.path.parent / "two")
    other.make_folders()
    other.config.write_text("{}")
    assert verb.main([str(run.path.parent), "--logs"]) == 2
    assert "holds 2 runs; give the directory of one: one, two" in capsys.readouterr().err
