"""Looking at runs: everything about one of them comes from one reading of its ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_llm.recovery import look
from hpc_llm.runs import ledger, story
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.story import Story
from hpc_llm.status import render, standing
from hpc_llm.watchdog import one_pass
from tests.fake_slurm import FakeSlurm, attempt, make_run

NAMES = ("one", "two", "sweep/lr=1", "sweep/lr=2")


@pytest.fixture
def looks(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often ledgers are read and folded, below a root with four runs that wait and train."""
    for number, name in enumerate(NAMES):
        state = "PENDING" if number % 2 else "RUNNING"
        run = make_run(slurm, name, job=f"{20 + number}", state=state)
        attempt(run, 1, 3000)
    counts = Counter[str]()
    read, fold = ledger.read, story.fold

    def counted_read(folder: Path) -> list[Event]:
        counts["read"] += 1
        return read(folder)

    def counted_fold(events: Sequence[Event]) -> Story:
        counts["fold"] += 1
        return fold(events)

    monkeypatch.setattr(ledger, "read", counted_read)
    monkeypatch.setattr(story, "fold", counted_fold)
    return counts


def test_a_look_at_a_root_folds_each_ledger_once(slurm: FakeSlurm, looks: Counter[str]) -> None:
    assert len(look.look_at_root(slurm.root)) == len(NAMES)
    assert looks == {"read": len(NAMES), "fold": len(NAMES)}


def test_so_does_a_pass_of_the_watchdog(slurm: FakeSlurm, looks: Counter[str]) -> None:
    one_pass.make_pass(slurm.root)
    assert looks == {"read": len(NAMES), "fold": len(NAMES)}


def test_so_does_the_status_of_a_root_and_of_a_run(slurm: FakeSlurm, looks: Counter[str]) -> None:
    assert len(standing.status_of(slurm.root).rows) == len(NAMES)
    assert looks == {"read": len(NAMES), "fold": len(NAMES)}
    looks.clear()
    run = slurm.root / "one"
    assert list(render.render_root(run, standing.status_of(run)))
    assert looks == {"read": 1, "fold": 1}
