"""Which ranks stay behind, by the times of their forward passes."""

from __future__ import annotations

import random

import torch

from hpc_llm.training.slow_ranks import IN_A_ROW, WINDOW, SlowRanks
from hpc_llm.zero.forward_clock import ForwardClock


def found(times: list[list[int]]) -> list[tuple[int, dict[int, float]]]:
    """(step, ranks told at it)."""
    watch = SlowRanks()
    looks = [(step, watch.look(one)) for step, one in enumerate(times, 1)]
    return [look for look in looks if look[1]]


def test_a_rank_that_stays_behind_is_told_once_with_how_much() -> None:
    assert found([[100, 102, 190, 98]] * (WINDOW * 5)) == [(WINDOW * IN_A_ROW, {2: 1.88})]


def test_one_that_comes_back_and_falls_behind_again_is_told_again() -> None:
    slow = [[100, 100, 200]] * (WINDOW * IN_A_ROW)
    well = [[100, 100, 100]] * WINDOW
    assert [ranks for _, ranks in found(slow + well + slow)] == [{2: 2.0}, {2: 2.0}]


def test_a_bad_minute_and_hiccups_are_no_evidence() -> None:
    draw = random.Random(0)
    noisy = [[draw.choice([100, 100, 100, 5000]) for _ in range(8)] for _ in range(WINDOW * 4)]
    assert found(noisy) == []
    assert found([[100, 100, 900]] * (WINDOW + 5) + [[100, 100, 100]] * WINDOW * 3) == []


def test_of_two_ranks_nobody_can_tell_and_times_that_are_not_known_yet_do_not_count() -> None:
    assert found([[100, 300]] * (WINDOW * 3)) == []
    assert found([[0, 0, 0]] * (WINDOW * 3)) == []


def test_the_clock_shows_the_newest_pass() -> None:
    clock = ForwardClock(torch.device("cpu"))
    assert clock.newest_us() == 0
    with clock:
        torch.ones(300, 300) @ torch.ones(300, 300)
    assert clock.newest_us() > 0
