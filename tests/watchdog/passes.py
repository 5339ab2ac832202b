"""Passes of the watchdog over a Slurm in memory, and runs in the states that it mends."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from hpc_llm.recovery.policy import Action
from hpc_llm.runs.layout import RunLayout
from hpc_llm.watchdog import one_pass
from tests.fake_slurm import (
    FakeSlurm,
    attempt,
    life,
    make_run,
)


def acts(slurm: FakeSlurm) -> list[tuple[str, Action]]:
    return [(run.record.layout.name, run.decision.action) for run in one_pass.make_pass(slurm.root)]


def acts_when_sure(slurm: FakeSlurm) -> list[tuple[str, Action]]:
    """As `acts`, if a pass a minute ago has seen the same."""
    looked_at(slurm, 61)
    return acts(slurm)


def looked_at(slurm: FakeSlurm, ago_s: float) -> None:
    """A pass so long ago that found nothing to do."""
    with pytest.MonkeyPatch.context() as clock:
        later(slurm, clock, -ago_s)
        assert acts(slurm) == []


def beat(layout: RunLayout, ago_s: float) -> None:
    layout.heartbeat.touch()
    os.utime(layout.heartbeat, (time.time() - ago_s,) * 2)


def requeued(slurm: FakeSlurm, path: str, job: str) -> RunLayout:
    run = make_run(slurm, path, job=job, state="PENDING")
    attempt(run, 1, 3000)
    slurm.put(job, "PENDING", reason="BeginTime", start_time=time.time() + 100)
    return run


def held(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="PENDING")
    slurm.put("12", "PENDING", reason="launch failed requeued held")
    slurm.ended["12"] = life("12", "NODE_FAIL", "n3")
    return run


def lost(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="PREEMPTED")
    attempt(run, 1, 3000)
    return run


def lost_task(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "sweep/lr=1", job="20_7", state="PREEMPTED")
    attempt(run, 1, 3000)
    return run


def orphan(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", job="12", state="RUNNING")
    attempt(run, 1, 3000)
    beat(run, 600)
    looked_at(slurm, 61)
    return run


def later(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock goes on."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
