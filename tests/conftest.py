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
    """The longest first; what is marked `long` only if asked for, and counted as left out."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
