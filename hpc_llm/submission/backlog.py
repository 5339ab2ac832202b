"""Sweeps that are larger than what Slurm lets a user submit (MaxSubmitJobs).

What fits goes out, the rest waits. What waits is frozen like everything else and kept in
<root>/.backlog/; the watchdog submits it as other jobs end (backlog_pass.py), with the script that
was written for it. A limit can be set in many places (association, account, QOS), so its value is
not looked up: an array is halved until Slurm accepts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpc_llm.runs import attempts, event_names, ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.slurm import client, own_jobs
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.slurm.script import array_spec
from hpc_llm.storage import trust
from hpc_llm.storage.files import write_atomic
from hpc_llm.submission import send

_FINEST = 8  # arrays are halved down to 1/8 of the first that fitted


@dataclass(frozen=True)
class Sent:
    """An array that Slurm has accepted."""

    number: int
    runs: dict[str, RunLayout]  # by address
    notes: tuple[str, ...]  # what sbatch said beside its number


@dataclass
class Backlog:
    """Tasks of one array script that have not been submitted yet.

    The fields are those of the file.
    """

    script: str
    name: str  # of the job
    tasks: dict[int, str]  # array index → run directory
    throttle: int | None
    dependency: str  # for sbatch, or ""
    words: list[str]  # arguments of the submission
    full_at: int = 0  # number of this user's jobs when Slurm last refused
    refused_at: float = 0.0
    why: str = ""  # Slurm's message
    arrays: list[int] = field(default_factory=list)  # ids of the arrays submitted so far
    # Indices of an array whose acceptance is not recorded yet, and when it was sent.
    sending: list[int] = field(default_factory=list)
    sent_at: float | None = None

    @property
    def path(self) -> Path:
        """<root>/.backlog/<sweep>.<script>.json"""
        script = Path(self.script)
        return RootLayout(script.parents[1]).backlog / f"{script.parent.name}.{script.stem}.json"

    def save(self) -> None:
        """Write the file; without tasks there is none."""
        if not self.tasks:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(exist_ok=True)
        write_atomic(self.path, json.dumps(asdict(self)))

    def send(
        self, size: int, known: Collection[int], before: int | None, least: int = 1
    ) -> Sent | None:
        """Submit the first `size` tasks, halved down to `least` until Slurm accepts them.

        None if Slurm accepts not even `least`. With a throttle, an array
        waits for the one `before` it, if that still exists: Slurm throttles each array alone.
        """
        while size >= least:
            self.sending = sorted(self.tasks)[:size]
            self.sent_at = time.time()
            self.save()
            script = Path(self.script)
            try:
                accepted = send.send(
                    script,
                    name=self.name,
                    work_dir=script.parent,
                    known={*known, *self.arrays},
                    options=self._options(self.sending, before),
                )
            except client.LimitReached as error:
                self.why = str(error)
                size = size // 2
                continue
            runs = self.record_sent(accepted.job_id)
            return Sent(accepted.job_id, runs, accepted.notes)
        self.sending = []
        return None

    def _options(self, tasks: Sequence[int], before: int | None) -> list[str]:
        """sbatch's options for an array of `tasks`."""
        dependencies = [self.dependency] if self.dependency else []
        if self.throttle and before:
            dependencies.append(f"afterany:{before}")
        options = [f"--array={array_spec(tuple(tasks), self.throttle)}"]
        if dependencies:
            options.append(f"--dependency={','.join(dependencies)}")
        return options

    def record_sent(self, number: int) -> dict[str, RunLayout]:
        """Record that array `number` holds what was being sent, in the ledgers first.

        Its runs by address. QueuedNotRecorded where that fails: the file still has what was being
        sent, and `settle` or the next pass records it.
        """
        sent = {}
        waiting = dict(self.tasks)
        for index in self.sending:
            if index in waiting:
                sent[f"{number}_{index}"] = RunLayout(Path(waiting.pop(index)))
        with send.recording(number):
            send.record_submitted(sent, self.sent_at or time.time(), words=self.words)
            self.tasks = waiting
            self.arrays.append(number)
            self.sending = []
            self.save()
        return sent

    def jobs(self, queue: Iterable[QueuedJob]) -> list[QueuedJob]:
        """Those of `queue` that were submitted from here; a number alone may be a stranger's."""
        own = [job for job in queue if job.array_id in self.arrays]
        folder = os.path.realpath(Path(self.script).parent)
        return own_jobs.find(own, {folder}, folder_of=own_jobs.resolved, ended=True)

    def array_being_sent(self, queue: Sequence[QueuedJob]) -> int | None:
        """The array that was being sent when its sender died, if Slurm has it."""
        jobs = own_jobs.find(
            queue,
            {os.path.realpath(Path(self.script).parent)},
            folder_of=own_jobs.resolved,
            name=self.name,
            tasks={str(index) for index in self.sending},
            known=self.arrays,
            ended=True,
        )
        return jobs[0].array_id if jobs else None

    def drop_removed(self) -> None:
        """Drop runs whose directories have been removed: they are no longer wanted."""
        there = {}
        for index, run in self.tasks.items():
            if RunLayout(Path(run)).config.exists():
                there[index] = run
        if len(there) < len(self.tasks):
            self.tasks = there
            self.save()


def fill(backlog: Backlog, known: Collection[int]) -> Iterator[Sent]:
    """Submit what fits now; each array as soon as Slurm has accepted it."""
    size = len(backlog.tasks)
    least = 1
    before = None
    while backlog.tasks:
        sent = backlog.send(min(size, len(backlog.tasks)), known, before, least)
        if sent is None:
            return
        before = sent.number
        yield sent
        least = max(least, len(sent.runs) // _FINEST)
        size = max(least, len(sent.runs) // 2)


def wait(backlog: Backlog, live: int) -> None:
    """Record what waits, in the backlog and in each run's ledger; `live`: this user's jobs now."""
    backlog.full_at = live
    backlog.refused_at = time.time()
    backlog.save()
    for run in backlog.tasks.values():
        layout = RunLayout(Path(run))
        book = ledger.Ledger(layout.ledger, "submit")
        newest = attempts.newest(layout)
        book.write(event_names.WAITING, why=backlog.why, after_attempt=newest)


def settle(root: Path, queue: Sequence[QueuedJob]) -> None:
    """Record the arrays that are queued though their senders could not record it."""
    for backlog in read_all(root):
        number = backlog.array_being_sent(queue)
        if number:
            backlog.drop_removed()
            backlog.record_sent(number)


def forget(root: Path, runs: Sequence[PlannedRun]) -> None:
    """Remove runs that are being submitted in another way."""
    submitted = {run.layout.path for run in runs}
    for backlog in read_all(root):
        for index, path in list(backlog.tasks.items()):
            if Path(path) in submitted:
                del backlog.tasks[index]
        backlog.save()


def read_all(root: Path) -> Iterator[Backlog]:
    """What waits below `root`; a file that cannot be read is passed over with a line."""
    folder = RootLayout(root).backlog
    for path in sorted(folder.glob("*.json")):
        if reason := trust.first_distrusted([folder, path]):
            trust.passed_over(path, reason)
            continue
        try:
            plain = json.loads(path.read_text())
            plain["tasks"] = {int(index): run for index, run in plain["tasks"].items()}
            yield Backlog(**plain)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: passed over, it cannot be read ({error!r})", file=sys.stderr)
