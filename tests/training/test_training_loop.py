"""The loop around an engine that computes nothing: when it answers a signal, and what it leaves to
no collector.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_llm.planning.plan import make_plan
from hpc_llm.planning.walltime import NOTICE_STEPS
from hpc_llm.trackers.protocol import Row
from hpc_llm.training import loop, saving
from hpc_llm.training.attempt import Attempt
from hpc_llm.training.divergence import SpikeRule
from hpc_llm.training.metrics import Metrics
from hpc_llm.training.stop import Outcome
from hpc_llm.zero.engine import StepOutput
from tests.configs import make_config


@dataclass
class Idle:
    """An engine, its batches and what asks it to stop, all in one."""

    during: Callable[[Idle], None] = lambda self: None
    steps: int = 0
    saved: list[int] = field(default_factory=list)  # steps that were done when each save began
    stop: bool = False
    hold: bool = False
    optimizer_name: str = "none"

    def train_step(self, passes: Any, lr: float, flags: Any = ()) -> StepOutput:
        self.steps += 1
        self.during(self)
        counts = torch.tensor([8, *map(int, flags)])
        return StepOutput(torch.tensor(8.0), counts, torch.tensor([1]), 0.1)

    def step(self, number: int, waiting: Any = None) -> list[Any]:
        return []

    def evaluate(self, batches: Any) -> float:
        return 1.0

    def save(self, *_: Any) -> None:
        self.saved.append(self.steps)


class Nowhere:
    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (loop, saving):
        monkeypatch.setattr(module, "gather_objects", lambda value: [value])
    gc.unfreeze()
    yield
    gc.unfreeze()


def train(idle: Any, folder: Path, *words: str) -> Outcome:
    config = make_config("train.duration=20steps", "optim.warmup=1steps", *words)
    plan = make_plan(config, None)
    paths = {name: folder / name for name in ("checkpoints", "metrics", "divergence")}
    attempt = Attempt(
        **paths,
        tracker_folder=lambda name: folder / name,
        number=1,
        rank=0,
        known_steps=0,
        check_fence=lambda: None,
        record=lambda *_, **__: None,
        skipped=(),
        beat=lambda *_: None,
    )
    metrics = Metrics([Nowhere()], 8, lambda step: 1.0, 1e9, SpikeRule(None), lambda *_: None)
    return loop.Trainer(config, plan, attempt, idle, idle, [], idle).train(0, metrics)


def test_a_run_that_nobody_stops_saves_at_its_end(tmp_path: Path) -> None:
    idle = Idle()
    assert train(idle, tmp_path) is Outcome.FINISHED
    assert (idle.steps, idle.saved) == (20, [20])


@pytest.mark.parametrize(
    ("every", "saved"),
    [("1h", [7, 14, 20]), ("5steps", [5, 7, 10, 14, 15, 20]), ("500steps", [7, 14, 20])],
)
def test_checkpoints_that_stay_for_good_are_saved_at_their_own_steps(
    tmp_path: Path, every: str, saved: list[int]
) -> None:
    idle = Idle()
    train(idle, tmp_path, f"checkpoint.every={every}", "checkpoint.permanent_every=7steps")
    assert idle.saved == saved


def test_a_save_for_good_stands_for_one_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second of its clock; rank 0 asks after six, and what it asks is known a step
    later.
    """
    idle = Idle()
    monkeypatch.setattr(saving.time, "monotonic", lambda: float(idle.steps))
    train(idle, tmp_path, "checkpoint.every=6s", "checkpoint.permanent_every=5steps")
    assert idle.saved == [5, 10, 15, 20]


def test_a_signal_is_answered_within_the_steps_that_the_notice_counts(tmp_path: Path) -> None:
    """It comes in the fifth step; what is left of that, and the steps after it, are done before the
    save begins.
    """

    def signal(idle: Idle) -> None:
        idle.stop = idle.stop or idle.steps == 5

    idle = Idle(during=signal)
    assert train(idle, tmp_path) is Outcome.STOPPED
    assert [step - 5 + 1 for step in idle.saved] == [NOTICE_STEPS]


def test_what_is_there_after_the_second_step_is_left_to_no_collection(tmp_path: Path) -> None:
    frozen: list[int] = []
    made: list[Any] = []

    def note(idle: Idle) -> None:
        frozen.append(gc.get_freeze_count())
        if idle.steps == 2:
            made.extend(
                [index] for index in range(10_000)
            )  # as what the first steps compile and allocate

    train(Idle(during=note), tmp_path)
    assert frozen[0] > 0  # the program
    assert frozen[2] > frozen[1] + 10_000
    assert max(frozen[3:]) <= frozen[2]  # and none of what comes later
