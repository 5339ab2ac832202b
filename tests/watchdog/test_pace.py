"""Passes of the watchdog: at its interval, and close together after a run has called."""

from __future__ import annotations

from hpc_llm.watchdog.pace import Pace


class World:
    """A clock that only sleeping moves, and calls that come at set times."""

    def __init__(self, *calls: float) -> None:
        self.now = 0.0
        self.calls = calls

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def last_call(self) -> int:
        return max((int(call) for call in self.calls if call <= self.now), default=0)

    def passes(self, count: int, every_s: float = 60.0) -> list[float]:
        pace = Pace(every_s, self.last_call, self.clock, self.sleep)
        found = []
        for _ in range(count):
            pace.wait()
            found.append(round(self.now, 1))
        return found


def test_without_a_call_passes_keep_their_interval() -> None:
    assert World().passes(3) == [60.0, 120.0, 180.0]


def test_a_call_brings_passes_close_together_that_grow_apart_again() -> None:
    assert World(20).passes(9) == [23.0, 27.5, 34.2, 44.4, 59.6, 82.3, 116.5, 167.8, 227.8]


def test_each_call_begins_anew() -> None:
    assert World(20, 40).passes(5) == [23.0, 27.5, 34.2, 43.2, 47.8]


def test_an_interval_shorter_than_that_stays() -> None:
    assert World(20).passes(12, every_s=2.0)[-1] == 24.0


def test_what_was_called_before_the_watchdog_came_needs_no_haste() -> None:
    world = World(20)
    world.now = 30.0
    assert world.passes(1) == [90.0]
