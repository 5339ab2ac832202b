"""What a pass costs, and what it knows of the runs from the pass before."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.recovery.policy import Action
from hpc_llm.runs.layout import RootLayout
from hpc_llm.watchdog import one_pass
from tests.fake_slurm import (
    FakeSlurm,
    attempt,
    make_run,
    write,
)
from tests.watchdog.passes import acts, beat, remove

_COUNTED: Counter[str] = Counter()


_COUNTING: list[Path] = []


_EVENTS = (
    "open",
    "os.listdir",
    "os.scandir",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.utime",
    "os.chmod",
    "os.link",
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _COUNTING and event in _EVENTS and str(arguments[0]).startswith(str(_COUNTING[0])):
        _COUNTED[f"{event} {arguments[0]}"] += 1


@pytest.fixture
def operations(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """File-system operations of one pass; Python audits all but stat, which is counted beside."""
    sys.addaudithook(_audit)

    def counting_stat(original: Callable[..., Any]) -> Callable[..., Any]:
        def stat(path: Any, *more: Any, **options: Any) -> Any:
            if _COUNTING:
                _COUNTED[f"stat {path}"] += 1
            return original(path, *more, **options)

        return stat

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counting_stat(getattr(os, name)))

    def make_pass() -> int:
        _COUNTED.clear()
        _COUNTING.append(slurm.root)
        try:
            one_pass.make_pass(slurm.root)
        finally:
            _COUNTING.clear()
        return sum(_COUNTED.values())

    return make_pass


def test_a_pass_costs_two_calls_of_slurm_and_at_most_one_look_at_each_live_run(
    slurm: FakeSlurm, operations: Callable[[], int]
) -> None:
    for number in range(240):
        run = make_run(slurm, f"done-{number}", job=f"{1000 + number}", state="COMPLETED")
        attempt(run, 1, 3000)
        write(run, 10, "supervisor-0001", "completed", attempt=1)
    slurm.jobs.clear()
    for number in range(40):
        run = make_run(slurm, f"sweep/live-{number}", job=f"5000_{number}")
        attempt(run, 1, 3000)
        beat(run, 5)
    for number in range(20):
        make_run(slurm, f"queued-{number}", job=f"{7000 + number}", state="PENDING")
    stale = time.time() - 100
    os.utime(slurm.root / "sweep", (stale, stale))
    slurm.said.clear()
    first = operations()
    assert first > 240
    assert slurm.said == ["queued"]
    slurm.said.clear()
    second = operations()
    assert slurm.said == ["queued"]
    running = sum("heartbeats" in key for key in _COUNTED)
    assert running == 40
    assert second <= 40 + 10, _COUNTED  # one of them: who owns the outbox
    slurm.put("7003", "PREEMPTED")
    operations()
    assert [word for word in slurm.said if word.startswith(("queued", "lives"))] == [
        "queued",
        "queued",
    ]


def test_a_new_run_in_a_known_sweep_is_found_and_one_that_is_removed_forgotten(
    slurm: FakeSlurm,
) -> None:
    make_run(slurm, "sweep/a", job="20_0", state="PENDING")
    one_pass.make_pass(slurm.root)
    late = make_run(slurm, "sweep/b", job="21_0", state="NODE_FAIL")
    assert acts(slurm) == [("b", Action.RESUBMIT)]
    remove(late.path)
    assert acts(slurm) == []


def test_a_run_that_was_given_up_and_is_submitted_again_is_looked_after_again(
    slurm: FakeSlurm,
) -> None:
    run = make_run(slurm, "one", job="12", state="FAILED")
    attempt(run, 1, 3000, cause="config-error")
    assert acts(slurm) == []
    write(run, 1, "submit", "submitted", job="13")
    slurm.put("13", "PENDING", name="one", work_dir=str(run.code), reason="Priority")
    assert acts(slurm) == []
    attempt(run, 2, 0.5)
    slurm.put("13", "NODE_FAIL")
    assert acts(slurm) == [("one", Action.RESUBMIT)]


def test_a_complete_run_that_is_made_longer_is_looked_after_again(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "one", job="12", state="COMPLETED")
    attempt(run, 1, 3000, cause="completed")
    write(run, 2900, "supervisor-0001", "completed", attempt=1, steps=100)
    assert acts(slurm) == []
    run.plan.write_text(json.dumps({"steps": 200, "nodes": 2}))
    write(run, 1, "submit", "submitted", job="13", steps=200)
    slurm.put("13", "RUNNING", name="one", work_dir=str(run.code), start_time=time.time() - 1)
    assert acts(slurm) == []
    attempt(run, 2, 0.5)
    slurm.put("13", "NODE_FAIL")
    assert acts(slurm) == [("one", Action.RESUBMIT)]


def test_a_census_that_is_damaged_is_made_anew(slurm: FakeSlurm) -> None:
    make_run(slurm, "one", job="12", state="PENDING")
    one_pass.make_pass(slurm.root)
    RootLayout(slurm.root).census.write_text('{"version": 1, "runs": 3}')
    slurm.put("12", "NODE_FAIL")
    assert acts(slurm) == [("one", Action.RESUBMIT)]
