"""A rank that holds on until Slurm ends its job, and lets go when it is told to."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hpc_llm import train
from hpc_llm.training.stop import Outcome, StopFlag
from tests.runs.machine import in_child


def test_a_signal_between_the_look_and_the_wait_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    hold = StopFlag.hold.fget
    assert hold is not None

    def look(stop: StopFlag) -> bool:
        looks.append(hold(stop))
        if len(looks) == 1:
            signal.raise_signal(signal.SIGUSR2)
        return looks[-1]

    def told(*_: Any) -> Outcome:
        signal.raise_signal(signal.SIGTERM)
        return Outcome.HELD

    def story() -> int:
        signal.alarm(10)  # ends a child that sleeps on
        return int(train.main([str(tmp_path)]))

    monkeypatch.setattr(StopFlag, "hold", property(look))
    monkeypatch.setattr(train, "train_rank", told)
    monkeypatch.setitem(os.environ, "HPC_LLM_HOLD", "1")
    assert in_child(story) == (0, train.ExitCode.STOPPED)
