"""What the watchdog does at each pass with sweeps that wait for room in Slurm's queue."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery import run_record
from hpc_llm.recovery.outside import FORGOTTEN_AFTER_S
from hpc_llm.runs import attempts, event_names, freeze, ledger
from hpc_llm.runs.layout import RootLayout, RunLayout, SweepLayout
from hpc_llm.slurm import client
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.storage.locks import Busy, locked
from hpc_llm.submission import dependency, send
from hpc_llm.submission.backlog import Backlog, read_all

# A limit may have been raised, or others' jobs may fill the same account: ask again after so long.
AGAIN_S = 600.0


def go_on(root: Path) -> Iterator[str]:
    """Submit what there is room for now; a line for each array.

    SlurmUnavailable: unknown, the next pass asks again.
    """
    if not any(RootLayout(root).backlog.glob("*.json")):
        return
    with contextlib.suppress(Busy), locked(RootLayout(root).submit_lock, timeout_s=0):
        queue = client.queued()
        for backlog in read_all(root):
            try:
                yield from _next(backlog, queue)
            except send.QueuedNotRecorded as error:
                yield f"{backlog.name}: {error}"
            except client.SlurmUnavailable:
                raise
            except Exception as error:  # what is wrong with one must not stop the others
                if isinstance(error, (client.SlurmRefused, InputError)):
                    backlog.sending = []
                # else it may have been sent, and the next pass looks for it
                _put_off(backlog)
                yield f"{backlog.name}: {len(backlog.tasks)} wait: {error}"


def _next(backlog: Backlog, queue: Sequence[QueuedJob]) -> Iterator[str]:
    number = backlog.array_being_sent(queue)
    backlog.drop_removed()
    if number:
        backlog.record_sent(number)
    live = [job for job in queue if job.live]
    refused_lately = time.time() - backlog.refused_at < AGAIN_S
    if not backlog.tasks or (refused_lately and len(live) >= backlog.full_at):
        return
    own = [job for job in backlog.jobs(queue) if job.live]
    cancelled = _cancelled(backlog, own)
    if cancelled:
        yield (
            f"{backlog.name}: its jobs were cancelled, so its {len(backlog.tasks)} waiting "
            "runs are cancelled too"
        )
        _cancel(backlog)
    if cancelled is not False:
        return
    size = min(len(backlog.tasks), max(1, backlog.full_at - len(live)))
    before = max((job.array_id for job in own), default=None)
    if backlog.throttle and before is not None and size < min(backlog.throttle, len(backlog.tasks)):
        return  # arrays of a throttled sweep run one after another: a full one later is better
    backlog.dependency = _dependency(backlog, live)
    sent = backlog.send(size, {job.array_id for job in queue}, before)
    if sent is not None:
        num_runs = len(sent.runs)
        yield f"{backlog.name}: array {sent.number}, {num_runs} runs; {len(backlog.tasks)} wait"
    else:
        backlog.full_at = len(live)
        _put_off(backlog)


def _put_off(backlog: Backlog) -> None:
    backlog.refused_at = time.time()
    backlog.save()


def _dependency(backlog: Backlog, live: Sequence[QueuedJob]) -> str:
    """sbatch's --dependency as of now: what it depends on may have ended, and Slurm forgets jobs.

    InputError if it can never run.
    """
    if not backlog.dependency:
        return ""
    config = freeze.read_config(RunLayout(Path(next(iter(backlog.tasks.values())))))
    return dependency.waits([config], live)[config.run.depends_on]


def _cancelled(backlog: Backlog, own: Sequence[QueuedJob]) -> bool | None:
    """Whether the user has cancelled everything submitted of the array.

    Then the rest is not wanted either. That is so if none of it is in the queue any more and the
    last job to end was cancelled. None: not known yet, because it may still become known how a run
    ended. own: the array's jobs that are queued or run.
    """
    states = {job.state for job in own}
    if states - {"COMPLETING"}:
        return False
    ends: list[tuple[float, bool]] = []
    for record in _records_of_submitted(backlog):
        run = record.summary
        time_of_last_event = record.story.events[-1].time
        if run.completed or run.final is not None:
            was_cancelled = not run.completed and run.final == event_names.CANCELLED
            ends.append((time_of_last_event, was_cancelled))
            continue
        last_sign_of_life = max(time_of_last_event, run.heartbeat_at or 0.0)
        if time.time() - last_sign_of_life < FORGOTTEN_AFTER_S:
            return None
    return max(ends)[1] if ends else False


def _records_of_submitted(backlog: Backlog) -> Iterator[run_record.RunRecord]:
    """The runs of the sweep that an array of this backlog was submitted with."""
    waiting = set(map(Path, backlog.tasks.values()))
    for layout in SweepLayout(Path(backlog.script).parent).runs():
        if layout.path in waiting:
            continue
        try:
            record = run_record.read_record(layout)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the pass has already reported it
        address = record.summary.address
        if address is not None and int(address.partition("_")[0]) in backlog.arrays:
            yield record


def _cancel(backlog: Backlog) -> None:
    writer = f"watchdog-{os.uname().nodename}-{os.getpid()}"
    for run in backlog.tasks.values():
        book = ledger.Ledger(RunLayout(Path(run)).ledger, writer)
        why = "its sweep's jobs were cancelled while it waited for room"
        newest = attempts.newest(RunLayout(Path(run)))
        book.write(event_names.CANCELLED, why=why, after_attempt=newest)
    backlog.tasks = {}
    backlog.save()
