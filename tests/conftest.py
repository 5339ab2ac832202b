"""Options of the whole suite."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.corpus", "tests.fake_slurm"]

# First, so that no worker is left with one when the others are done.
LONGEST = ("test_survival.py", "test_slurm_sweep.py", "test_storm.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="also the forms that take an hour: a hundred faults"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What waits beside what computes, then what is quick; what is `long` only if asked for.

    Tests on Slurm wait most of their time, real training takes all cores: taken in turns they share
    the machine to the end.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)
    waiting = [item for item in items if item.get_closest_marker("slurm")]
    computing = [item for item in items if item.get_closest_marker("slow") and item not in waiting]
    quick = [item for item in items if item not in waiting and item not in computing]
    ordered = [*in_turns(waiting, computing), *quick]
    long = [item for item in ordered if item.get_closest_marker("long")]
    if long and not config.getoption("--long"):
        config.hook.pytest_deselected(items=long)
        ordered = [item for item in ordered if item not in long]
    items[:] = ordered


def in_turns(first: list[pytest.Item], second: list[pytest.Item]) -> list[pytest.Item]:
    """Both lists in their own order, each spread evenly over the whole."""
    placed = [(number / len(first), 0, item) for number, item in enumerate(first)]
    placed += [(number / len(second), 1, item) for number, item in enumerate(second)]
    return [item for _, _, item in sorted(placed, key=lambda place: place[:2])]
