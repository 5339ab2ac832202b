"""Sweeps larger than what Slurm lets a user submit (MaxSubmitJobs): what fits goes out, the rest
waits.

What waits is frozen like everything else and kept in <root>/.backlog/; the watchdog submits it as
other jobs end, with the script that was written for it. A limit can be set in many places
(association, account, QOS), so its value is not looked up: an array is halved until Slurm accepts
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery import look
from hpc_llm.recovery.outside import FORGOTTEN_AFTER_S
from hpc_llm.runs import event_names, freeze, ledger
from hpc_llm.runs.layout import RootLayout, RunLayout, SweepLayout
from hpc_llm.slurm import client, own_jobs
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.slurm.script import array_spec
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.locks import Busy, locked
from hpc_llm.submission import dependency, send

_AGAIN_S = 600.0  # a limit may have been raised, or others' jobs may fill the same account
_FINEST = 8  # arrays are halved down to 1/8 of the first that fitted


@dataclass
class Backlog:
    """Tasks of one array script that have not been submitted yet."""

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
    sending: list[int] = field(
        default_factory=list
    )  # indices of an array whose acceptance is not recorded yet
    sent_at: float | None = None  # when that was sent

    @property
    def path(self) -> Path:
        """<root>/.backlog/<sweep>.<script>.json"""
        script = Path(self.script)
        return RootLayout(script.parents[1]).backlog / f"{script.parent.name}.{script.stem}.json"

    def save(self) -> None:
        if not self.tasks:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(exist_ok=True)
        write_atomic(self.path, json.dumps(asdict(self)))

    def send(
        self, size: int, known: Collection[int], before: int | None, least: int = 1
    ) -> dict[str, RunLayout]:
        """Submit the first `size` tasks, halved down to `least` until Slurm accepts them; their
        runs by address.

        With a throttle, an array waits for the one `before` it, if that still exists: Slurm
        throttles each array alone.
        """
        while size >= least:
            tasks = sorted(self.tasks)[:size]
            after = [f"afterany:{before}"] if self.throttle and before else []
            depends = ",".join(([self.dependency] if self.dependency else []) + after)
            options = [f"--array={array_spec(tuple(tasks), self.throttle)}"]
            options += [f"--dependency={depends}"] if depends else []
            self.sending = tasks
            self.sent_at = time.time()
            self.save()
            try:
                script = Path(self.script)
                before_us = {*known, *self.arrays}
                number = send.send(
                    script, name=self.name, work_dir=script.parent, known=before_us, options=options
                )
            except client.LimitReached as error:
                self.why = str(error)
                size = size // 2
                continue
            return self.note(number)
        self.sending = []
        return {}

    def note(self, number: int) -> dict[str, RunLayout]:
        """Record that array `number` holds what was being sent, in the ledgers first; its runs by
        address.

        Unrecorded where that fails: the file still has what was being sent, and `settle` or the
        next pass notes it.
        """
        ours = [index for index in self.sending if index in self.tasks]
        sent = {f"{number}_{index}": RunLayout(Path(self.tasks[index])) for index in ours}
        with send.recording(number):
            send.record_submitted(sent, self.sent_at or time.time(), words=self.words)
            self.tasks = {index: run for index, run in self.tasks.items() if index not in ours}
            self.arrays.append(number)
            self.sending = []
            self.save()
        return sent


def fill(backlog: Backlog, known: Collection[int]) -> Iterator[tuple[int, dict[str, RunLayout]]]:
    """Submit what fits now: each array's id and its runs by address, as soon as Slurm has accepted
    it.
    """
    size = len(backlog.tasks)
    least = 1
    before = None
    while backlog.tasks and (
        sent := backlog.send(min(size, len(backlog.tasks)), known, before, least)
    ):
        before = backlog.arrays[-1]
        yield before, sent
        least = max(least, len(sent) // _FINEST)
        size = max(least, len(sent) // 2)


def wait(backlog: Backlog, live: int) -> None:
    """Record what waits, in the backlog and in each run's ledger."""
    backlog.full_at = live
    backlog.refused_at = time.time()
    backlog.save()
    for run in backlog.tasks.values():
        ledger.Ledger(RunLayout(Path(run)).ledger, "submit").write(
            event_names.WAITING, why=backlog.why
        )


def settle(root: Path, queue: Sequence[QueuedJob]) -> None:
    """Note the arrays that are queued though their senders could not record it."""
    for backlog in _read(root):
        if number := _array_being_sent(backlog, queue):
            _drop_removed(backlog)
            backlog.note(number)


def forget(root: Path, runs: Collection[Path]) -> None:
    """Remove runs that are being submitted anew."""
    for backlog in _read(root):
        backlog.tasks = {
            index: run for index, run in backlog.tasks.items() if Path(run) not in runs
        }
        backlog.save()


def go_on(root: Path) -> Iterator[str]:
    """Submit what there is room for now; a line for each array. SlurmUnavailable: unknown, the next
    pass asks again.
    """
    if not any(RootLayout(root).backlog.glob("*.json")):
        return
    with contextlib.suppress(Busy), locked(RootLayout(root).submit_lock, timeout_s=0):
        queue = client.queued()
        for backlog in _read(root):
            try:
                yield from _next(backlog, queue)
            except send.QueuedNotRecorded as error:
                yield f"{backlog.name}: {error}"
            except client.SlurmUnavailable:
                raise
            except (
                Exception
            ) as error:  # whatever is wrong with one, the others and the watchdog continue
                if isinstance(error, (client.SlurmRefused, InputError)):
                    # else it may have been sent, and the next pass looks for it
                    backlog.sending = []
                backlog.refused_at = time.time()
                backlog.save()
                yield f"{backlog.name}: {len(backlog.tasks)} wait: {error}"


def _next(backlog: Backlog, queue: Sequence[QueuedJob]) -> Iterator[str]:
    number = _array_being_sent(backlog, queue)
    _drop_removed(backlog)
    if number:
        backlog.note(number)
    live = [job for job in queue if job.live]
    soon = time.time() - backlog.refused_at < _AGAIN_S
    if not backlog.tasks or (soon and len(live) >= backlog.full_at):
        return
    cancelled = _cancelled(backlog, live)
    if cancelled:
        yield (
            f"{backlog.name}: its jobs were cancelled, so its {len(backlog.tasks)} waiting "
            "runs are cancelled too"
        )
        _cancel(backlog)
    if cancelled is not False:
        return
    size = min(len(backlog.tasks), max(1, backlog.full_at - len(live)))
    before = max((job.array_id for job in live if job.array_id in backlog.arrays), default=None)
    if backlog.throttle and before is not None and size < min(backlog.throttle, len(backlog.tasks)):
        return  # arrays of a throttled sweep run one after another: a full one later is better
    backlog.dependency = _dependency(backlog, live)
    if sent := backlog.send(size, {job.array_id for job in queue}, before):
        yield (
            f"{backlog.name}: array {backlog.arrays[-1]}, {len(sent)} runs; {len(backlog.tasks)} "
            "wait"
        )
    else:
        backlog.full_at = len(live)
        backlog.refused_at = time.time()
        backlog.save()


def _dependency(backlog: Backlog, live: Sequence[QueuedJob]) -> str:
    """What it depends on may have ended meanwhile, and Slurm forgets jobs. InputError if it can
    never run.
    """
    if not backlog.dependency:
        return ""
    config = freeze.read_config(RunLayout(Path(next(iter(backlog.tasks.values())))))
    return dependency.waits([config], live)[config.run.depends_on]


def _read(root: Path) -> Iterator[Backlog]:
    for path in sorted(RootLayout(root).backlog.glob("*.json")):
        try:
            plain = json.loads(path.read_text())
            yield Backlog(
                **{**plain, "tasks": {int(index): run for index, run in plain["tasks"].items()}}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def _array_being_sent(backlog: Backlog, queue: Sequence[QueuedJob]) -> int | None:
    """The array that was being sent when its sender died."""
    jobs = own_jobs.find(
        queue,
        {os.path.realpath(Path(backlog.script).parent)},
        folder_of=own_jobs.resolved,
        name=backlog.name,
        tasks={str(index) for index in backlog.sending},
        known=backlog.arrays,
        ended=True,
    )
    return jobs[0].array_id if jobs else None


def _drop_removed(backlog: Backlog) -> None:
    """Drop runs whose directories have been removed: they are no longer wanted."""
    there = {
        index: run for index, run in backlog.tasks.items() if RunLayout(Path(run)).config.exists()
    }
    if len(there) < len(backlog.tasks):
        backlog.tasks = there
        backlog.save()


def _cancelled(backlog: Backlog, live: Sequence[QueuedJob]) -> bool | None:
    """Whether the user has cancelled everything submitted of the array: then the rest is not wanted
    either.

    That is so if none of it is in the queue any more and the last job to end was cancelled. None:
    not known yet, because it may still become known how a run ended.
    """
    ours = set(backlog.arrays)
    states = {job.state for job in live if job.array_id in ours}
    if states - {"COMPLETING"}:
        return False
    waiting = {Path(run) for run in backlog.tasks.values()}
    ends: list[tuple[float, bool]] = []
    for layout in SweepLayout(Path(backlog.script).parent).runs():
        if layout.path in waiting:
            continue
        try:
            record = look.read_record(layout)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the pass has already reported it
        run = record.facts
        if run.address is None or int(run.address.partition("_")[0]) not in ours:
            continue
        if not run.completed and run.final is None:
            if (
                time.time() - max(record.story.events[-1].time, run.heartbeat_at or 0.0)
                < FORGOTTEN_AFTER_S
            ):
                return None
            continue
        ends.append(
            (record.story.events[-1].time, not run.completed and run.final == event_names.CANCELLED)
        )
    return max(ends)[1] if ends else False


def _cancel(backlog: Backlog) -> None:
    for run in backlog.tasks.values():
        book = ledger.Ledger(
            RunLayout(Path(run)).ledger, f"watchdog-{os.uname().nodename}-{os.getpid()}"
        )
        book.write(
            event_names.CANCELLED, why="its sweep's jobs were cancelled while it waited for room"
        )
    backlog.tasks = {}
    backlog.save()
