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

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.exclusion import NodeExclusions, exclusion
from hpc_llm.recovery.look import RunRecord, Seen, SlurmQueue, ledger_for
from hpc_llm.recovery.policy import AGAIN, Action
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.layout import RootLayout
from hpc_llm.slurm import client, own_jobs

UNANSWERED_S = 30.0  # a slow slurmctld may still take a submission whose answer was lost


def carry_out(root: Path, seen: Sequence[Seen], queue: SlurmQueue) -> tuple[list[Seen], list[Seen]]:
    """What was done, and what Slurm refused. Refusals are recorded; the next pass retries what got
    no answer.
    """
    blame = NodeExclusions(root)
    done = []
    refused = []
    for run in seen:
        if run.decision.action is Action.NOTHING:
            continue
        book = ledger_for(run.record)
        try:
            blame.of_attempt(run.record)
            _Performance(run, book, blame, queue)()
        except client.SlurmRefused as error:
            book.write(
                event_names.REFUSED,
                action=run.decision.action.value,
                why=str(error),
                job=run.record.facts.address,
            )
            refused.append(run)
        except client.SlurmUnavailable:
            continue  # unknown: the next pass asks again
        except OSError as error:
            print(f"{run.record.layout.path}: {error}", file=sys.stderr)
        else:
            done.append(run)
    return done, refused


def note_without_slurm(run: Seen, book: ledger.Ledger, job: str) -> None:
    """Record a decision that `job` carries out simply by running (recovery.successor)."""
    act = _Performance(run, book, None, SlurmQueue(ask=False))
    act.tell_the_end()
    book.write(run.decision.action.value, why=run.decision.why, job=job, **act.charge())


def sent_already(record: RunRecord, queue: SlurmQueue, task: str) -> str | None:
    """A queued job of this run that its ledger does not know: whoever submitted it died before
    recording it.
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


class _Performance:
    """One decision, carried out."""

    def __init__(
        self, run: Seen, book: ledger.Ledger, blame: NodeExclusions | None, queue: SlurmQueue
    ) -> None:
        self.run = run
        self.book = book
        self.queue = queue
        self.blame = blame or NodeExclusions(RootLayout.of(run.record.layout).path)
        self.record = run.record
        self.facts = run.record.facts
        self.decision = run.decision

    def __call__(self) -> None:
        action = self.decision.action
        address = self.facts.address
        assert address is not None
        self.tell_the_end()
        more: dict[str, Any] = {"job": address}
        if self.decision.cause is Cause.LAUNCH_FAILED and action in AGAIN:
            more["nodes"] = self.blame.of_launch(self.record, self.run.job.life_nodes)
        if action is Action.EXPEDITE:
            self._leave_out(address)
            client.expedite(address)
        elif action is Action.RELEASE:
            self._leave_out(address)
            client.release(address)
        elif action is Action.REQUEUE:
            client.requeue(
                address
            )  # nodes are excluded by the pass that finds it pending: before, Slurm would refuse
        elif action is Action.RESUBMIT:
            more["job"] = self._resubmit(address)
        elif (
            action in (Action.STOP, Action.FREE)
            and self.run.job.queued is not None
            and self.run.job.queued.live
        ):
            client.cancel(address)
        elif action is Action.WITHDRAW:
            successor = self.run.job.successor
            more = {
                "job": successor.address if successor is not None and successor.live else address
            }
            client.cancel(more["job"])
        self.book.write(action.value, why=self.decision.why, **more, **self.charge())

    def charge(self) -> dict[str, Any]:
        """The attempt after which the run continues; for a job in which none began, also its cause
        and hours.

        Those are recorded nowhere else.
        """
        if self.decision.action not in AGAIN:
            return {}
        said: dict[str, Any] = {"after_attempt": self.facts.attempt}
        if self.decision.cause is Cause.LAUNCH_FAILED:
            said |= {"cause": str(self.decision.cause), "life": self.run.job.life_start}
            said["gpu_hours"] = round(
                self.run.job.life_hours(time.time()) * self.record.config.cluster.held_gpus, 6
            )
        return said

    def tell_the_end(self) -> None:
        """Record the end, as Slurm reports it, of an attempt that could not record it itself."""
        history = self.facts.history
        cause = self.decision.cause
        if (
            cause is None
            or cause is Cause.LAUNCH_FAILED
            or not history
            or history[-1].cause is not Cause.LOST
        ):
            return
        self.book.write(
            event_names.ENDED,
            attempt=self.facts.attempt,
            cause=str(cause),
            checkpoint_step=history[-1].checkpoint_step,
            gpu_hours=round(self._hours(history[-1].gpu_hours), 6),
            restart=self.decision.action in AGAIN,
            at=life.end_time if (life := self.run.job.last_life) is not None else None,
            why=self.decision.why,
        )

    def _hours(self, at_least: float) -> float:
        """GPU-hours of the newest attempt, from its start to the end of the job's life."""
        life = self.run.job.last_life
        started = max(attempt.time for attempt in self.record.story.attempts)
        if life is None or life.end_time is None or life.end_time < started:
            return at_least
        return max(
            at_least, (life.end_time - started) / 3600 * self.record.config.cluster.held_gpus
        )

    def _leave_out(self, address: str) -> None:
        """Exclude bad nodes from the pending job: only then may an ordinary user change that.

        If Slurm refuses (the job has just started), the run continues with them.
        """
        if (found := exclusion(self.record, self.blame)) is not None:
            with contextlib.suppress(client.SlurmRefused):
                client.update(address, ExcNodeList=found.words)
                found.write_down(self.book)

    def _resubmit(self, address: str) -> str:
        """Submit the frozen script again: that of a single job, or its task of the sweep's."""
        task = address.partition("_")[2]
        found = sent_already(self.record, self.queue, task)
        if found is None:
            if self.facts.sent_at is not None and time.time() - self.facts.sent_at < UNANSWERED_S:
                raise client.SlurmUnavailable("a submission a moment ago may still come to light")
            self.book.write(event_names.RESUBMITTING, after=address)
            options = [f"--array={task}"] if task else []
            if (out := exclusion(self.record, self.blame)) is not None:
                out.write_down(self.book)
                options += [f"--exclude={out.words}"] if out.words else []
            job_id = client.submit(self.record.layout.script, *options)
            found = f"{job_id}_{task}" if task else str(job_id)
        return found
