"""How long a supervisor sleeps, and what wakes it."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from hpc_llm.supervise.waiting import HEARTBEAT_S, Waiting
from tests.runs.machine import in_child


def test_a_deadline_that_has_come_is_not_slept_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(select, "select", lambda *given: waited.append(given[3]) or ([], [], []))
    waiting = Waiting(tmp_path / "heartbeat")
    waiting.sleep(0.0)
    waiting.sleep(1e6)
    assert waited == [0.0, HEARTBEAT_S]
    assert (tmp_path / "heartbeat").exists()


def test_a_signal_is_noted_and_wakes_whoever_sleeps(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path / "heartbeat")

    def story() -> bool:
        began = time.monotonic()
        with waiting.listening():
            os.kill(os.getpid(), signal.SIGUSR2)
            waiting.sleep(60.0)
        return waiting.signals == [signal.SIGUSR2] and time.monotonic() - began < HEARTBEAT_S

    assert in_child(story) == (0, True)
