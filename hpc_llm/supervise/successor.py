"""`python -m hpc_llm.supervise.successor RUN_DIR`, run in a job before it trains: a watchdog
without its own process.

Each job first queues a successor that waits for its end (`afterany`), at no cost while it waits.
When the successor starts, it decides as a watchdog would: continue training, or exit because the
run is complete, cancelled or out of budget. Standard library only.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

from hpc_llm.recovery import carry_out, exclusion, look, outside
from hpc_llm.recovery.exclusion import NodeExclusions
from hpc_llm.recovery.look import RunRecord, Seen, SlurmAnswers, SlurmQueue
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.orders import AFTER
from hpc_llm.slurm import client
from hpc_llm.slurm.script import SUCCESSOR_LEAVES

FAILURES = (OSError, ValueError, KeyError, client.SlurmError)  # of the disk, its contents, or Slurm


def main() -> int:
    """0: train; SUCCESSOR_LEAVES: there is nothing to do. Errors here never keep the run from
    training.
    """
    layout = RunLayout(Path(sys.argv[1]))
    own = client.own_address(os.environ)
    try:
        record = look.read_record(layout)
        book = ledger.Ledger(layout.ledger, f"successor-{own}")
        why = _nothing_to_do(record, own, book) if AFTER in os.environ else _complete(record)
        if why is not None:
            print(f"successor: {why}: nothing to do", flush=True)
            return SUCCESSOR_LEAVES
        queue_next(record, own, book)
    except FAILURES as error:
        print(f"successor: {error}; training without one", file=sys.stderr, flush=True)
    return 0


def _complete(record: RunRecord) -> str | None:
    return "complete" if record.facts.completed else None


def _nothing_to_do(record: RunRecord, own: str, book: ledger.Ledger) -> str | None:
    """Why the run needs no further job; None once this one is noted as the run's."""
    run = record.facts
    if run.completed or run.final is not None:
        return run.final or "complete"
    if run.address == own:
        return None  # requeued: it has already taken over
    queue = SlurmQueue()
    alone = dataclasses.replace(
        record, facts=dataclasses.replace(run, successor=None, sent_at=None)
    )
    job = SlurmAnswers([alone], queue)(alone)
    if job.queued is not None and job.queued.live:
        return f"job {run.address} is {job.queued.state}"
    decision = outside.decide_outside(alone.facts, job, time.time())
    if decision.action is Action.NOTHING:
        return (
            f"Slurm does not say how job {run.address} ended; it may be a user's scancel, "
            "which is final"
        )
    carry_out.note_without_slurm(
        Seen(alone, job, decision),
        book,
        own if decision.action is Action.RESUBMIT else str(run.address),
    )
    return None if decision.action is Action.RESUBMIT else decision.why


def queue_next(record: RunRecord, own: str, book: ledger.Ledger) -> None:
    """Submit the same script, to wait for the end of this job; once, however often this job is
    requeued.
    """
    queue = SlurmQueue()
    task = own.partition("_")[2]
    waiting = queue.job(record.facts.successor)
    out = _left_out(record)
    if waiting is not None and waiting.live and waiting.address != own:
        if out is not None:
            client.update(waiting.address, ExcNodeList=out.words)
            out.write_down(book, job=waiting.address)
        return
    known = own in record.story.jobs
    found = carry_out.sent_already(record, queue, task) if known else None
    if found is None or found == own:
        options = [f"--dependency=afterany:{own}", f"--export=ALL,{AFTER}={own}"]
        options += [f"--array={task}"] if task else []
        options += [f"--exclude={out.words}"] if out is not None and out.words else []
        number = client.submit(record.layout.script, *options)
        found = f"{number}_{task}" if task else str(number)
        if out is not None:
            out.write_down(book, job=found)
    book.write(event_names.SUCCESSOR, job=found, after=own)


def _left_out(record: RunRecord) -> exclusion.Exclusion | None:
    """Nodes with enough evidence against them; None if there are none, or if it is not known which
    nodes are up.
    """
    try:
        return exclusion.exclusion(record, NodeExclusions(RootLayout.of(record.layout).path))
    except (OSError, client.SlurmError):
        return None


def hand_over(layout: RunLayout, book: ledger.Ledger) -> bool:
    """Whether the job that waits for this one's end will take over without the bad nodes.

    Requeueing this job instead could bring them back: Slurm accepts no exclusion until the job is
    pending, and then no process of the run is left to ask for it.
    """
    record = look.read_record(layout)
    waiting = SlurmQueue().job(record.facts.successor)
    out = _left_out(record)
    if waiting is None or not waiting.pending or out is None or not out.words:
        return False
    try:
        client.update(waiting.address, ExcNodeList=out.words)
    except client.SlurmError:
        return False
    out.write_down(book, job=waiting.address)
    return True


def withdraw(layout: RunLayout) -> None:
    """Remove the waiting job of a run that is over from the queue; if Slurm does not answer, it
    starts and exits.
    """
    record = look.read_record(layout)
    if record.facts.successor is not None:
        client.cancel(record.facts.successor)


if __name__ == "__main__":
    sys.exit(main())
