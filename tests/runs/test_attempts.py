"""One attempt writes: numbers without doubles or gaps, and a fence that trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.runs import attempts
from hpc_llm.runs.attempts import Fence, Fenced
from hpc_llm.runs.layout import RunLayout
from tests.runs.machine import all_at_once


def test_the_first_attempt_is_number_1(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert attempts.newest(layout) == 0
    assert attempts.claim(layout) == 1
    assert attempts.newest(layout) == 1
    assert layout.attempt(1).is_dir()


def test_processes_that_claim_at_once_get_consecutive_numbers(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    claimed = all_at_once(8, lambda _: [attempts.claim(layout) for _ in range(10)])
    assert sorted(number for numbers in claimed for number in numbers) == list(range(1, 81))
    assert all(numbers == sorted(numbers) for numbers in claimed)


def test_numbers_go_on_past_the_width_of_their_names(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.attempt(9999).mkdir(parents=True)
    assert [attempts.claim(layout), attempts.claim(layout)] == [10_000, 10_001]


def test_what_else_lies_there_takes_no_number(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    attempts.claim(layout)
    (layout.attempts / "0007.bak").mkdir()
    (layout.attempts / "notes").touch()
    assert attempts.claim(layout) == 2


def test_the_fence_trips_once_a_newer_attempt_exists(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    old = Fence(layout, attempts.claim(layout))
    old.check()
    (successor,) = all_at_once(1, lambda _: attempts.claim(layout))
    with pytest.raises(Fenced, match="attempt 1 is not the newest any more"):
        old.check()
    Fence(layout, successor).check()


def test_the_fence_does_not_believe_a_remembered_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a network file system may answer for a minute that a name is not there."""
    layout = RunLayout(tmp_path)
    old = Fence(layout, attempts.claim(layout))
    attempts.claim(layout)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert old.tripped()


def test_whoever_goes_on_takes_the_very_next_number_or_none(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    first = attempts.claim(layout)
    assert attempts.follow(layout, first) == 2
    with pytest.raises(Fenced, match="attempt 1 is not the newest any more"):
        attempts.follow(layout, first)
    assert attempts.newest(layout) == 2


def test_of_attempts_that_race_exactly_the_newest_may_write(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    numbers = all_at_once(6, lambda _: attempts.claim(layout))

    def may_write(index: int) -> bool:
        try:
            Fence(layout, numbers[index]).check()
        except Fenced:
            return False
        return True

    allowed = all_at_once(6, may_write)
    assert [number for number, may in zip(numbers, allowed, strict=True) if may] == [max(numbers)]
