"""Sweeps larger than what Slurm lets a user submit (MaxSubmitJobs): what fits goes out, the rest waits.

What waits is frozen like everything else and lies in <root>/.backlog/; the watchdog submits it as other jobs end, with
the script that was written for it. A limit has many places (association, account, QOS), so nobody looks for its value:
an array is halved until Slurm takes it.
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

from filelock import FileLock, Timeout

from hpc_llm.launch import sending
from hpc_llm.launch.sbatch import array_spec
from hpc_llm.recovery.facts import WAITING
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.slurm import client
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.storage.files import write_atomic

_AGAIN_S = 600.0  # a limit may have been raised, or others' jobs may fill the same account
_WHY = "there was room again"
_FINEST = 8  # halves are tried down to this fraction of the first that fitted


@dataclass
class Backlog:
    """Tasks of one array script that are not submitted yet."""

    script: str
    name: str  # of the job
    tasks: dict[int, str]  # array index → run directory
    throttle: int | None
    dependency: str  # sbatch's, or ""
    full_at: int = 0  # this user's jobs when Slurm last said no
    refused_at: float = 0.0
    why: str = ""  # in its words
    arrays: list[int] = field(default_factory=list)  # which have been submitted of it
    sending: list[int] = field(default_factory=list)  # indices of an array whose acceptance is not noted yet

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

    def send(self, size: int, known: Collection[int], before: int | None, least: int = 1) -> dict[str, RunLayout]:
        """Submit the first `size` tasks, halved down to `least` until Slurm takes them: its runs by address.

        With a throttle, an array waits for the one `before` it, if that is still there: Slurm's is for each array.
        """
        while size >= least:
            tasks = sorted(self.tasks)[:size]
            after = [f"afterany:{before}"] if self.throttle and before else []
            depends = ",".join(([self.dependency] if self.dependency else []) + after)
            options = [f"--array={array_spec(tuple(tasks), self.throttle)}"]
            options += [f"--dependency={depends}"] if depends else []
            self.sending = tasks
            self.save()
            try:
                script = Path(self.script)
                number = sending.send(script, name=self.name, work_dir=script.parent, known=known, options=options)
            except client.LimitReached as error:
                self.why, size = str(error), size // 2
                continue
            return self.note(number)
        self.sending = []
        return {}

    def note(self, number: int) -> dict[str, RunLayout]:
        """Array `number` has what was being sent: its runs by address."""
        ours = [index for index in self.sending if index in self.tasks]
        sent = {f"{number}_{index}": RunLayout(Path(self.tasks.pop(index))) for index in ours}
        self.arrays.append(number)
        self.sending = []
        self.save()
        return sent


def fill(backlog: Backlog, known: Collection[int]) -> Iterator[tuple[int, dict[str, RunLayout]]]:
    """Submit what fits now: each array's id and its runs by address, as soon as Slurm has it."""
    size, least, before = len(backlog.tasks), 1, None
    while backlog.tasks and (sent := backlog.send(min(size, len(backlog.tasks)), known, before, least)):
        before = backlog.arrays[-1]
        yield before, sent
        least = max(least, len(sent) // _FINEST)
        size = max(least, len(sent) // 2)


def wait(backlog: Backlog, live: int) -> None:
    """Write down what waits, in the backlog and in each run's ledger."""
    backlog.full_at, backlog.refused_at = live, time.time()
    backlog.save()
    for run in backlog.tasks.values():
        ledger.Ledger(RunLayout(Path(run)).ledger, "submit").write(WAITING, why=backlog.why)


def forget(root: Path, runs: Collection[Path]) -> None:
    """These are submitted anew."""
    for backlog in _read(root):
        backlog.tasks = {index: run for index, run in backlog.tasks.items() if Path(run) not in runs}
        backlog.save()


def go_on(root: Path) -> list[str]:
    """Submit what there is room for now; a line for each array. SlurmUnavailable: nobody knows, the next pass asks."""
    if not (waiting := list(_read(root))):
        return []
    lines = []
    with contextlib.suppress(Timeout), FileLock(RootLayout(root).submit_lock, timeout=0):
        queue = client.queued()
        live = sum(job.live for job in queue)
        for backlog in waiting:
            if number := _found(backlog, queue):
                sending.note(backlog.note(number), why=_WHY)
            _drop_removed(backlog)
            if _cancelled(backlog):
                lines.append(f"{backlog.name}: its jobs were cancelled, so {len(backlog.tasks)} waiting runs are too")
                _cancel(backlog)
                continue
            if not backlog.tasks or (live >= backlog.full_at and time.time() - backlog.refused_at < _AGAIN_S):
                continue
            size = min(len(backlog.tasks), max(1, backlog.full_at - live))
            before = max((job.array_id for job in queue if job.live and job.array_id in backlog.arrays), default=None)
            sent = backlog.send(size, {job.array_id for job in queue}, before)
            if not sent:
                backlog.full_at, backlog.refused_at = live, time.time()
                backlog.save()
                continue
            live += len(sent)
            sending.note(sent, why=_WHY)
            lines.append(f"{backlog.name}: array {backlog.arrays[-1]}, {len(sent)} runs; {len(backlog.tasks)} wait")
    return lines


def _read(root: Path) -> Iterator[Backlog]:
    for path in sorted(RootLayout(root).backlog.glob("*.json")):
        try:
            plain = json.loads(path.read_text())
            yield Backlog(**{**plain, "tasks": {int(index): run for index, run in plain["tasks"].items()}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def _found(backlog: Backlog, queue: Sequence[QueuedJob]) -> int | None:
    """The array that was being sent when its sender died."""
    folder = os.path.realpath(Path(backlog.script).parent)
    for job in queue if backlog.sending else ():
        task = job.address.partition("_")[2]
        ours = job.name == backlog.name and os.path.realpath(job.work_dir) == folder and task.isdigit()
        if ours and job.array_id not in backlog.arrays and int(task) in backlog.sending:
            return job.array_id
    return None


def _drop_removed(backlog: Backlog) -> None:
    """Who removes a run's directory does not want it."""
    there = {index: run for index, run in backlog.tasks.items() if RunLayout(Path(run)).config.exists()}
    if len(there) < len(backlog.tasks):
        backlog.tasks = there
        backlog.save()


def _cancelled(backlog: Backlog) -> bool:
    """Whether the user has cancelled all that was submitted of the array: then the rest is not wanted either."""
    folder = Path(backlog.script).parent
    waiting = {Path(run) for run in backlog.tasks.values()}
    ours = {str(number) for number in backlog.arrays}
    ends = []
    for path in folder.glob("[!.]*/config.json") if backlog.tasks else ():
        if path.parent not in waiting:
            events = ledger.read(RunLayout(path.parent).ledger)
            if any(str(event.facts.get("job", "")).partition("_")[0] in ours for event in events):
                ends.append(any(_says_cancelled(event) for event in events))
                if not ends[-1]:
                    return False
    return bool(ends)


def _says_cancelled(event: ledger.Event) -> bool:
    return "cancelled" in (event.event, event.facts.get("cause"))


def _cancel(backlog: Backlog) -> None:
    for run in backlog.tasks.values():
        book = ledger.Ledger(RunLayout(Path(run)).ledger, f"watchdog-{os.uname().nodename}-{os.getpid()}")
        book.write("cancelled", why="its sweep's jobs were cancelled while it waited for room")
    backlog.tasks = {}
    backlog.save()
