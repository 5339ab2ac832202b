"""The trackers of a run, opened by their names in the configuration.

A new tracker is one file beside this one, one row in OPENERS, and its settings in the
configuration: a field of TrackersConfig and a file in conf/trackers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import RunConfig, TensorboardConfig
from hpc_llm.trackers.hyperparameters import hyperparameters
from hpc_llm.trackers.jsonl import JsonlTracker
from hpc_llm.trackers.protocol import Row, Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """What a tracker may know of the attempt that it is opened for."""

    config: RunConfig
    start_step: int  # rows of later steps, from an earlier attempt, are dropped
    metrics: Path
    folder_of: Callable[[str], Path]  # where a tracker may write, by its name
    check_fence: Callable[[], None]  # raises once a newer attempt exists


def _tensorboard(opening: Opening, settings: TensorboardConfig) -> Tracker:
    from hpc_llm.trackers.tensorboard import TensorboardTracker  # 0.4 s to import

    return TensorboardTracker(
        opening.folder_of("tensorboard"),
        opening.start_step,
        settings.every,
        hyperparameters(opening.config),
    )


# Name in `trackers` → what opens it, given its section there.
OPENERS: dict[str, Callable[[Opening, Any], Tracker]] = {
    "tensorboard": _tensorboard,
}


def open_trackers(opening: Opening) -> list[Tracker]:
    """metrics.jsonl first, whose failures count, then the trackers that the run asks for."""
    exact = JsonlTracker(opening.metrics, opening.start_step, opening.check_fence)
    trackers: list[Tracker] = [exact]
    for name, opener in OPENERS.items():
        settings = getattr(opening.config.trackers, name)
        if settings is None:
            continue
        try:
            trackers.append(Bystander(name, opener(opening, settings)))
        except Exception as error:
            log.warning("trackers: %s cannot be opened and is left out: %s", name, error)
    return trackers


class Bystander:
    """A tracker that training does without from its first failure on."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def log(self, row: Row) -> None:
        if self._tracker is not None:
            self._call(lambda tracker: tracker.log(row))

    def close(self) -> None:
        if self._tracker is not None:
            self._call(lambda tracker: tracker.close())

    def _call(self, do: Callable[[Tracker], None]) -> None:
        assert self._tracker is not None
        try:
            do(self._tracker)
        except Exception as error:
            log.warning("trackers: %s failed and is left out from now on: %s", self._name, error)
            self._tracker = None
