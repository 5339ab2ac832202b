"""A watchdog may be killed anywhere: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from hpc_llm.recovery import node_evidence
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.watchdog import census, one_pass
from tests.fake_slurm import (
    FakeSlurm,
    Killed,
    named,
    write,
)
from tests.watchdog.passes import held, later, looked_at, lost, lost_task, orphan, remove, requeued

STORIES: dict[str, Callable[[FakeSlurm], RunLayout]] = {
    "held": held,
    "lost": lost,
    "lost task": lost_task,
    "orphan": orphan,
    "requeued": lambda slurm: requeued(slurm, "one", "12"),
}


def settle(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of another watchdog, a minute apart, until there is nothing to do."""
    for number in range(1, 6):
        with monkeypatch.context() as clock:
            later(slurm, clock, 60 * number)
            one_pass.make_pass(slurm.root)


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_watchdog_killed_over_any_call_of_slurm_loses_nothing_and_doubles_nothing(
    slurm: FakeSlurm, story: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    for number in range(1, 30):
        pristine = dict(slurm.jobs)
        slurm.said.clear()
        slurm.kill_at = (number, side)
        try:
            one_pass.make_pass(slurm.root)
            killed = False
        except Killed:
            killed = True
        slurm.kill_at = None
        settle(slurm, monkeypatch)
        (job,) = slurm.live()
        assert job.reason in ("Priority", "BeginTime")
        assert ledger.read(run.ledger)
        assert latest_job(run) == job.address
        if not killed:
            assert number > 2
            return
        start_over(slurm, run, pristine, story)
    raise AssertionError("a pass without end")


@pytest.mark.parametrize("story", ["lost", "lost task"])
def test_a_job_that_starts_before_its_submission_is_noted_is_not_sent_again(
    slurm: FakeSlurm, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    with (
        killing_writes(3),
        suppress(Killed),
    ):  # its end, the announcement, and then the note that it was sent
        one_pass.make_pass(slurm.root)
    (job,) = slurm.live()
    slurm.put(job.address, "RUNNING", start_time=time.time())
    write(run, 0, "supervisor-0002", "started", attempt=2, checkpoint_step=0, job=job.address)
    settle(slurm, monkeypatch)
    assert [one.address for one in slurm.live()] == [job.address]
    slurm.put(job.address, "CANCELLED")
    settle(slurm, monkeypatch)
    assert slurm.live() == []
    assert named(run, "cancelled")


@pytest.mark.parametrize("story", STORIES)
def test_a_watchdog_killed_over_any_write_loses_nothing_and_doubles_nothing(
    slurm: FakeSlurm, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = STORIES[story](slurm)
    for number in range(1, 30):
        pristine = dict(slurm.jobs)
        with killing_writes(number) as count, suppress(Killed):
            one_pass.make_pass(slurm.root)
        settle(slurm, monkeypatch)
        (job,) = slurm.live()
        assert latest_job(run) == job.address
        assert job.reason in ("Priority", "BeginTime")
        if count() < number:
            assert number > 3
            return
        start_over(slurm, run, pristine, story)
    raise AssertionError("a pass without end")


def latest_job(run: RunLayout) -> str:
    sent = [
        event for event in ledger.read(run.ledger) if event.event in ("submitted", "resubmitted")
    ]
    return str(sent[-1].facts["job"])


def start_over(slurm: FakeSlurm, run: RunLayout, jobs: dict[str, Any], story: str) -> None:
    """As it was before the pass."""
    for path in run.ledger.glob("watchdog-*"):
        path.unlink()
    remove(RootLayout(slurm.root).nodes)
    RootLayout(slurm.root).census.unlink(missing_ok=True)
    slurm.jobs = jobs
    slurm.excluded.clear()
    if story == "orphan":
        looked_at(slurm, 61)


@contextmanager
def killing_writes(number: int) -> Iterator[Callable[[], int]]:
    """Killed when the `number`th line is to be appended, or file replaced; how many there were."""
    count = 0

    def guard(original: Callable[..., None]) -> Callable[..., None]:
        def write(*words: Any) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            original(*words)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (ledger, "append_line"),
            (node_evidence, "append_line"),
            (census, "write_atomic"),
        ):
            patch.setattr(module, name, guard(getattr(module, name)))
        patch.setattr(one_pass, "write_atomic", guard(one_pass.write_atomic))
        yield lambda: count
