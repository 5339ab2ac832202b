"""`python -m hpc_llm.supervise.successor RUN_DIR`: a watchdog without a process of its own.

It runs in a job before that trains. Each job first queues a successor that waits for its end
(`afterany`), at no cost while it waits. When the successor starts, it decides as a watchdog would:
continue training, or exit because the run is complete, cancelled or out of budget. Standard library
only.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

from hpc_llm.recovery import carry_out, outside, run_record
from hpc_llm.recovery.exclusion import Exclusion, NodeExclusions, find_exclusion
from hpc_llm.recovery.look import Seen
from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.recovery.slurm_answers import SlurmAnswers, SlurmQueue
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.orders import AFTER
from hpc_llm.slurm import client
from hpc_llm.slurm.script import SUCCESSOR_LEAVES

FAILURES = (OSError, ValueError, KeyError, client.SlurmError)  # of the disk, its contents, or Slurm


def main() -> int:
    """0: train; SUCCESSOR_LEAVES: there is nothing to do.

    Errors here never keep the run from training.
    """
    layout = RunLayout(Path(sys.argv[1]))
    own = client.own_address(os.environ)
    try:
        record = run_record.read_record(layout)
        book = ledger.Ledger(layout.ledger, f"successor-{own}")
        why = _nothing_to_do(record, own, book)
        if why is not None:
            print(f"successor: {why}: nothing to do", flush=True)
            return SUCCESSOR_LEAVES
        queue_next(record, own, book)
    except FAILURES as error:
        print(f"successor: {error}; training without one", file=sys.stderr, flush=True)
    return 0


def _nothing_to_do(record: RunRecord, own: str, book: ledger.Ledger) -> str | None:
    """Why the run needs no further job; None once job `own` is noted as the run's."""
    run = record.summary
    if AFTER not in os.environ:  # a job that somebody has submitted
        return "complete" if run.completed else None
    if run.completed or run.final is not None:
        return run.final or "complete"
    if run.address == own:
        return None  # requeued: it has already taken over
    return _follow(record, own, book)


def _follow(record: RunRecord, own: str, book: ledger.Ledger) -> str | None:
    """Note job `own` as the run's, in place of the one that has ended; why not, or None."""
    run = dataclasses.replace(record.summary, successor=None, sent_at=None)
    alone = dataclasses.replace(record, summary=run)
    job = SlurmAnswers([alone], SlurmQueue()).of(alone)
    if job.queued is not None and job.queued.live:
        return f"job {run.address} is {job.queued.state}"
    decision = outside.decide_outside(run, job, time.time())
    if decision.action is Action.NOTHING:
        return (
            f"Slurm does not say how job {run.address} ended; it may be a user's scancel, "
            "which is final"
        )
    if decision.hold:  # by this job, which runs already, and there is no watchdog
        decision = dataclasses.replace(decision, action=Action.STOP)
    seen = Seen(alone, job, decision)
    if decision.action is Action.RESUBMIT:
        carry_out.take_over(seen, book, own)
        return None
    carry_out.take_over(seen, book, str(run.address))
    return decision.why


def queue_next(record: RunRecord, own: str, book: ledger.Ledger) -> None:
    """Submit the same script, to wait for the end of job `own`.

    That happens once, however often the job is requeued.
    """
    queue = SlurmQueue()
    waiting = queue.job_of(record, record.summary.successor)
    exclusion = _exclusion(record)
    if waiting is not None and waiting.live and waiting.address != own:
        if exclusion is not None:
            client.update(waiting.address, ExcNodeList=exclusion.node_list)
            exclusion.record(book, job=waiting.address)
        return
    successor = _sent_before(record, queue, own)
    if successor is None:
        successor = _submit(record, own, exclusion)
        if exclusion is not None:
            exclusion.record(book, job=successor)
    book.write(event_names.SUCCESSOR, job=successor, after=own)


def _sent_before(record: RunRecord, queue: SlurmQueue, own: str) -> str | None:
    """A job that was submitted to follow `own`, and whose number was lost before it was noted."""
    if own not in record.story.jobs:
        return None
    job = carry_out.unrecorded_job(record, queue, _task(own))
    return None if job == own else job


def _submit(record: RunRecord, own: str, exclusion: Exclusion | None) -> str:
    """Address of a new job that waits for the end of `own`."""
    task = _task(own)
    options = [f"--dependency=afterany:{own}", *_environment(record, f"{AFTER}={own}")]
    if task:
        options.append(f"--array={task}")
    if exclusion is not None and exclusion.node_list:
        options.append(f"--exclude={exclusion.node_list}")
    number = client.submit(record.layout.script, *options)
    return f"{number}_{task}" if task else str(number)


def _environment(record: RunRecord, variable: str) -> list[str]:
    """Options that give a job `variable` beside what cluster.sbatch.export leaves it."""
    export = record.config.cluster.sbatch.get("export")
    if export is None:
        return [f"--export=ALL,{variable}"]
    # A list of variables passes on nothing else, like NIL; NONE also reads the login's start-up
    # files.
    return [f"--export={variable}", *(["--get-user-env"] if export == "NONE" else [])]


def _task(address: str) -> str:
    """The index in an array; empty for a job that is none."""
    return address.partition("_")[2]


def _exclusion(record: RunRecord) -> Exclusion | None:
    """Nodes with enough evidence against them.

    None if there are none, or if it is not known which nodes are up.
    """
    try:
        return find_exclusion(record, NodeExclusions(RootLayout.of(record.layout).path))
    except (OSError, client.SlurmError):
        return None


def hand_over(layout: RunLayout, book: ledger.Ledger) -> bool:
    """Whether the job that waits for this one's end will take over without the bad nodes.

    Requeueing this job instead could bring them back: Slurm accepts no exclusion until the job is
    pending, and then no process of the run is left to ask for it.
    """
    record = run_record.read_record(layout)
    waiting = SlurmQueue().job_of(record, record.summary.successor)
    exclusion = _exclusion(record)
    if waiting is None or not waiting.pending or exclusion is None or not exclusion.node_list:
        return False
    try:
        client.update(waiting.address, ExcNodeList=exclusion.node_list)
    except client.SlurmError:
        return False
    exclusion.record(book, job=waiting.address)
    return True


def withdraw(layout: RunLayout) -> None:
    """Remove the waiting job of a run that is over from the queue.

    If Slurm does not answer, the job starts and exits.
    """
    record = run_record.read_record(layout)
    waiting = SlurmQueue().job_of(record, record.summary.successor)
    if waiting is not None and waiting.live:
        client.cancel(waiting.address)


if __name__ == "__main__":
    sys.exit(main())
