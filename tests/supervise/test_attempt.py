"""One attempt: what its ranks are given, and what is decided when it ends."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from hpc_llm.recovery import run_record
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import ledger, orders
from hpc_llm.runs.orders import ExitCode
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.attempt_supervisor import AttemptSupervisor
from hpc_llm.supervise.ending import AttemptEnd, Ending
from hpc_llm.supervise.place import LocalPlace, Place
from hpc_llm.supervise.steps import StepEnd
from hpc_llm.supervise.waiting import Waiting
from tests.supervise.places import Allocation, attempt_of


def end_by(cause: Cause, checkpoint_step: int = 0, **more: Any) -> AttemptEnd:
    failed = None if cause is Cause.COMPLETED else 0
    end = StepEnd({0: int(cause is not Cause.COMPLETED)}, failed)
    return AttemptEnd(1, Ending(cause, end), checkpoint_step, 0.1, **more)


def test_what_the_ledger_keeps_of_an_end_keeps_its_order() -> None:
    facts = end_by(Cause.GPU_OUT_OF_MEMORY, micro_batch=2, halved=True).facts()
    assert facts == {
        "attempt": 1,
        "cause": "gpu-out-of-memory",
        "exit_codes": {"0": 1},
        "first_failed": 0,
        "checkpoint_step": 0,
        "gpu_hours": 0.1,
        "micro_batch": 2,
        "halved": True,
    }
    assert list(facts) == [
        "attempt",
        "cause",
        "exit_codes",
        "first_failed",
        "checkpoint_step",
        "gpu_hours",
        "micro_batch",
        "halved",
    ]
    assert "micro_batch" not in end_by(Cause.CRASH).facts()


@pytest.mark.parametrize(("place", "again"), [(Allocation(), ["requeue"]), (LocalPlace(), [])])
def test_a_crash_while_the_time_limit_is_near_takes_the_job_back_to_the_queue(
    run: Any, place: Place, again: list[str]
) -> None:
    story = run("done()")
    waiting = Waiting(story.layout.heartbeat)
    waiting.signals.append(signal.SIGUSR2)
    dying = AttemptSupervisor(attempt_of(story.layout), place, waiting)
    ledger.Ledger(story.layout.ledger, "supervisor-0001").write(
        "started", attempt=1, checkpoint_step=0, job="12"
    )
    end = end_by(Cause.CRASH)
    dying.conclude(end, dying.decide(end))
    assert [facts["how"] for facts in story.facts("requeued")] == again
    assert run_record.read_record(story.layout).summary.final is None


def test_a_submission_that_comes_while_an_attempt_runs_does_not_take_its_end_away(run: Any) -> None:
    story = run("done()")
    running = AttemptSupervisor(
        attempt_of(story.layout), LocalPlace(), Waiting(story.layout.heartbeat)
    )
    ledger.Ledger(story.layout.ledger, "supervisor-0001").write(
        "started", attempt=1, checkpoint_step=0
    )
    ledger.Ledger(story.layout.ledger, "submit").write("submitted", after_attempt=1)
    assert not running.decide(end_by(Cause.COMPLETED, checkpoint_step=8)).restart


def given_micro_batch(attempt: RunAttempt) -> int | None:
    """What the ranks of `attempt` are told, as the ledger is now."""
    story = attempt.story(ledger.read(attempt.layout.ledger))
    spec = attempt.step_spec(LocalPlace(), attempt.micro_batch(story))
    return orders.read(spec.environment).micro_batch


def test_a_halved_micro_batch_is_that_of_its_submission(run: Any) -> None:
    """The next plan may be for larger GPUs, or for a train.micro_batch that was given."""
    told = 'print(os.environ["HPC_LLM_MICRO_BATCH"], flush=True)'
    ranks = f"{told}; leave({ExitCode.GPU_OUT_OF_MEMORY}) if ATTEMPT == 1 else done()"
    story = run(ranks, 1, "train.global_batch=8", "train.micro_batch=4")
    assert story.status() == 0
    printed = [story.layout.rank_log(attempt, 0).read_text() for attempt in (1, 2)]
    assert printed == ["4\n", "2\n"]
    assert given_micro_batch(attempt_of(story.layout, 3)) == 2
    ledger.Ledger(story.layout.ledger, "submit").write("submitted", after_attempt=2)
    assert given_micro_batch(attempt_of(story.layout, 2)) == 2, "of an attempt that it came after"
    assert given_micro_batch(attempt_of(story.layout, 3)) == 4


@pytest.mark.parametrize(("hosts", "threads"), [((), 2), (("n1", "n2"), 4)])
def test_the_cores_of_a_node_are_shared_by_its_ranks(
    run: Any, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], threads: int
) -> None:
    attempt = attempt_of(run("done()", 4).layout)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert attempt.step_spec(Allocation(hosts), 1).threads_per_rank == threads


def test_ranks_die_with_a_supervisor_on_their_machine_and_wait_for_slurm_in_a_job(run: Any) -> None:
    attempt = attempt_of(run("done()").layout)
    here = orders.read(attempt.step_spec(LocalPlace(), 1).environment)
    assert (here.supervisor, here.hold) == (os.getpid(), False)
    job = orders.read(attempt.step_spec(Allocation(), 1).environment)
    assert (job.supervisor, job.hold) == (None, True)
    assert job.rendezvous == f"{attempt.layout.path}/1"
