"""Which runs of a sweep are stopped at its rungs."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.watchdog.halving import RungRun, Stopped, judge_rungs

NAMES = [f"run-{number}" for number in range(9)]
LOSSES = st.lists(st.floats(1, 9), min_size=3, max_size=3)


def at(*losses: float, over: bool = False) -> RungRun:
    return RungRun(dict(enumerate(losses)), over)


def losers(runs: dict[str, RungRun], num_rungs: int, keep: float) -> dict[str, Stopped]:
    return judge_rungs(runs, num_rungs, keep)[0]


def test_who_got_through_a_rung_is_never_stopped_at_it_again() -> None:
    """Losers' directories may be removed, and losers be taken up again: the field of a rung was
    what it was.
    """
    runs = {name: at(loss) for name, loss in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)}
    out, through = judge_rungs(runs, 1, 0.5)
    assert (set(out), through) == ({"c", "d"}, {"a": 1, "b": 1})
    left = {name: RungRun({0: runs[name].losses[0]}, over=False, promoted=1) for name in "ab"}
    assert judge_rungs(left, 1, 0.5) == ({}, {"a": 1, "b": 1})
    assert set(losers({"a": at(1.0), "b": at(2.0)}, 1, 0.5)) == {"b"}


def test_the_worse_half_is_out_as_soon_as_enough_are_better() -> None:
    runs = {"a": at(3.0), "b": at(2.0), "c": at(4.0), "d": at()}
    (name, lost) = next(iter(losers(runs, 1, 0.5).items()))
    assert (name, lost.why) == ("c", "rung 1: held-out loss 4.0000, 2 of 4 runs are better")
    assert losers({**runs, "c": at()}, 1, 0.5) == {}  # two of four may go on: nobody is out yet
    assert set(losers({**runs, "d": at(1.0)}, 1, 0.5)) == {"a", "c"}


def test_a_later_rung_is_judged_once_its_field_is_known() -> None:
    runs = {"a": at(3.0, 2.9), "b": at(2.0, 1.9), "c": at(4.0), "d": at()}
    assert set(losers(runs, 2, 0.5)) == {"c"}
    assert set(losers({**runs, "d": at(5.0)}, 2, 0.5)) == {"a", "c", "d"}


def test_runs_that_failed_before_a_rung_take_no_part_and_nan_is_the_worst() -> None:
    runs = {"a": at(3.0), "b": at(over=True), "c": at(math.nan)}
    assert set(losers(runs, 1, 0.5)) == {"c"}
    assert losers({"a": at(3.0), "b": at(over=True)}, 1, 0.5) == {}


@given(st.lists(LOSSES, min_size=1, max_size=9), st.floats(0.1, 0.9), st.randoms())
def test_who_remains_does_not_depend_on_who_came_first(
    table: list[list[float]], keep: float, order: random.Random
) -> None:
    """However the runs come in, nobody is stopped who is among the best in the end, and just those
    remain.
    """
    names = NAMES[: len(table)]
    final = losers({name: at(*losses) for name, losses in zip(names, table, strict=True)}, 3, keep)
    reached = dict.fromkeys(names, 0)
    out = dict[str, int]()
    while moving := [name for name in names if name not in out and reached[name] < 3]:
        reached[order.choice(moving)] += 1
        runs = {
            name: at(*table[n][: reached[name]], over=name in out) for n, name in enumerate(names)
        }
        found = losers(runs, 3, keep)
        assert found.keys() >= out.keys()
        out |= {name: lost.rung for name, lost in found.items()}
    assert out == {name: lost.rung for name, lost in final.items()}
    assert len(names) - len(out) >= 1
