"""Carry out decisions: tell Slurm, and record in the run's ledger what was done and why.

Being killed between the two loses nothing and does nothing twice: a submission is announced before
it is sent, and looked for in the queue before it is sent again; everything else may safely be told
to Slurm twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_llm.recovery import outside
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.exclusion import NodeExclusions, find_exclusion
from hpc_llm.recovery.look import Seen
from hpc_llm.recovery.policy import AGAIN, Action
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.recovery.slurm_answers import SlurmQueue
from hpc_llm.runs import event_names
from hpc_llm.runs.layout import RootLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.slurm import client, own_jobs

UNANSWERED_S = 30.0  # a slow slurmctld may still take a submission whose answer was lost


def carry_out(
    root: Path, all_seen: Sequence[Seen], queue: SlurmQueue
) -> tuple[list[Seen], list[Seen]]:
    """What was done, and what Slurm refused.

    Refusals are recorded; the next pass retries what got no answer.
    """
    exclusions = NodeExclusions(root)
    done = []
    refused = []
    for seen in all_seen:
        record = seen.record
        action = seen.decision.action
        if action is Action.NOTHING and not seen.job.untold:
            continue
        book = record.watchdog_ledger()
        try:
            _record_untold(seen, book)
            if action is Action.NOTHING:
                continue
            exclusions.witness_attempt(record)
            _Performance(seen, book, exclusions, queue).perform()
        except client.SlurmRefused as error:
            address = record.summary.address
            book.write(event_names.REFUSED, action=action.value, why=str(error), job=address)
            refused.append(seen)
        except client.SlurmUnavailable:
            continue  # unknown: the next pass asks again
        except OSError as error:
            print(f"{record.layout.path}: {error}", file=sys.stderr)
        else:
            done.append(seen)
    return done, refused


def take_over(seen: Seen, book: Ledger, job: str) -> None:
    """Record a decision that `job` carries out simply by running (supervise.successor)."""
    exclusions = NodeExclusions(RootLayout.of(seen.record.layout).path)
    performance = _Performance(seen, book, exclusions, SlurmQueue(ask=False))
    performance.record_end()
    decision = seen.decision
    book.write(decision.action.value, why=decision.why, job=job, **performance.charge())


def unrecorded_job(record: RunRecord, queue: SlurmQueue, task: str) -> str | None:
    """A queued job of this run that its ledger does not know.

    Whoever submitted it died before recording it. task: its number in an array, or ''.
    """
    layout = record.layout
    name = re.search(r'--job-name="?([^"\n]+)', layout.script.read_text())
    if name is None:
        return None
    folder = layout.path.parent if task else layout.path
    jobs = own_jobs.find(
        queue.jobs,
        {os.path.realpath(folder)},
        folder_of=own_jobs.resolved if task else own_jobs.run_of_code,
        name=name[1],
        tasks={task},
        known=set(record.story.jobs),
    )
    return jobs[0].address if jobs else None


def _record_untold(seen: Seen, book: Ledger) -> None:
    """How attempts ended that Slurm ended and followed by others before any pass; once each."""
    for untold in seen.job.untold:
        cause = Cause.LOST
        state = "and no longer knows why it ended"
        at = None
        if untold.life is not None:
            cause = outside.cause_of(untold.life.state)
            state = untold.life.state
            at = untold.life.end_time
        why = f"Slurm had started the job again: {state}"
        book.write(
            event_names.ENDED,
            attempt=untold.attempt,
            cause=str(cause),
            restart=True,
            at=at,
            why=why,
        )


class _Performance:
    """One decision, carried out."""

    def __init__(
        self, seen: Seen, book: Ledger, exclusions: NodeExclusions, queue: SlurmQueue
    ) -> None:
        self.book = book
        self.queue = queue
        self.exclusions = exclusions
        self.record = seen.record
        self.run = seen.record.summary
        self.job = seen.job
        self.decision = seen.decision

    def perform(self) -> None:
        """Tell Slurm, and record it."""
        address = self.run.address
        assert address is not None
        self.record_end()
        nodes: dict[str, Any] = {}
        if self._charges_a_launch():
            nodes = {"nodes": self.exclusions.witness_launch(self.record, self.job.life_nodes)}
        job = self._tell_slurm(address)
        action = self.decision.action.value
        self.book.write(action, why=self.decision.why, job=job, **nodes, **self.charge())

    def charge(self) -> dict[str, Any]:
        """The attempt after which the run continues, or ends.

        For a job in which none began, also its cause and hours, which are recorded nowhere else.
        """
        charge: dict[str, Any] = {"after_attempt": self.run.attempt}
        if self._charges_a_launch() or self._charges_a_waiting_job():
            hours = self.job.life_hours(time.time()) * self.record.config.cluster.held_gpus
            charge["cause"] = str(self.decision.cause)
            charge["life"] = self.job.life_start
            charge["gpu_hours"] = round(hours, 6)
        return charge

    def record_end(self) -> None:
        """Record the end, as Slurm reports it, of an attempt that could not record it itself."""
        cause = self.decision.cause
        if cause is None or cause is Cause.LAUNCH_FAILED or not self.run.lost:
            return
        end = self.run.history[-1]
        ended_at = None
        if self.job.last_life is not None:
            ended_at = self.job.last_life.end_time
        self.book.write(
            event_names.ENDED,
            attempt=self.run.attempt,
            cause=str(cause),
            checkpoint_step=end.checkpoint_step,
            gpu_hours=round(self._hours(end.gpu_hours), 6),
            restart=self.decision.action in AGAIN,
            at=ended_at,
            why=self.decision.why,
        )

    def _charges_a_waiting_job(self) -> bool:
        """Whether an administrator cancelled a job in which no attempt had begun."""
        return self.decision.cause is Cause.ADMIN_CANCEL and not self.run.lost

    def _charges_a_launch(self) -> bool:
        return self.decision.cause is Cause.LAUNCH_FAILED and self.decision.action in AGAIN

    def _tell_slurm(self, address: str) -> str:
        """Do it; the job that it was done to, or that came of it."""
        action = self.decision.action
        if action is Action.EXPEDITE:
            self._exclude_nodes(address)
            client.expedite(address)
        elif action is Action.RELEASE:
            self._exclude_nodes(address)
            client.release(address)
        elif action is Action.REQUEUE:
            # Slurm would refuse to exclude nodes before it is pending: a later pass does that.
            client.requeue(address)
        elif action is Action.RESUBMIT:
            return self._resubmit(address)
        elif action in (Action.STOP, Action.FREE):
            if self.job.live:
                client.cancel(address)
        elif action is Action.WITHDRAW:
            successor = self.job.successor
            if successor is not None and successor.live:
                address = successor.address
            client.cancel(address)
        return address

    def _hours(self, at_least: float) -> float:
        """GPU-hours of the newest attempt, from its start to the end of the job's life."""
        life = self.job.last_life
        started = max(attempt.time for attempt in self.record.story.attempts)
        if life is None or life.end_time is None or life.end_time < started:
            return at_least
        held_gpus = self.record.config.cluster.held_gpus
        return max(at_least, (life.end_time - started) / 3600 * held_gpus)

    def _exclude_nodes(self, address: str) -> None:
        """Exclude bad nodes from the pending job: only then may an ordinary user change that.

        If Slurm refuses (the job has just started), the run continues with them.
        """
        change = find_exclusion(self.record, self.exclusions)
        if change is not None:
            with contextlib.suppress(client.SlurmRefused):
                client.update(address, ExcNodeList=change.node_list)
                change.record(self.book)

    def _resubmit(self, address: str) -> str:
        """Submit the frozen script again: that of a single job, or its task of the sweep's."""
        task = address.partition("_")[2]
        job = unrecorded_job(self.record, self.queue, task)
        if job is not None:
            return job
        if self.run.sent_at is not None and time.time() - self.run.sent_at < UNANSWERED_S:
            raise client.SlurmUnavailable("a submission a moment ago may still come to light")
        self.book.write(event_names.RESUBMITTING, after=address)
        options = []
        if task:
            options.append(f"--array={task}")
        change = find_exclusion(self.record, self.exclusions)
        if change is not None:
            change.record(self.book)
            if change.node_list:
                options.append(f"--exclude={change.node_list}")
        if self.decision.hold:
            options.append("--hold")
        job_id = client.submit(self.record.layout.script, *options)
        return f"{job_id}_{task}" if task else str(job_id)
