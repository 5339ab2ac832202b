"""Jobs done by all hands there are: processes of this machine, and other machines that work in the same folder.

A job is done when its result is there; results appear whole, by rename, and any two ways of making one give the same
bytes. So a killed hand loses its job and nothing else, and claims only save work: no bytes rest on them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.data.workers import Workers

OnProgress = Callable[[str, int, int, int], None]  # stage, bytes of text done, bytes in all (0: not known), tokens
Say = Callable[[str], None]
POLL_S = 1.0
_BEAT_S = 5.0
_DEAD_S = 60.0  # without a beat: many beats, and a stall of a file system


@dataclass(frozen=True)
class Job:
    """`call` makes the file `result` and returns how many tokens that are; `size` is its part of the stage."""

    result: Path
    size: int
    call: Callable[[], int]
    heavy: bool = True  # for a worker; else it is done in this process

    @classmethod
    def here(cls, result: Path, call: Callable[[], object]) -> Job:
        """A job that this process does itself, and of which no share can be done."""

        def make() -> int:
            call()
            return 0

        return cls(result, 0, make, heavy=False)


class Claims:
    """Who is at which job, in files of a folder; a hand that no longer gives signs of life has no claims.

    `task` is a number that no other living hand has: a new life of a killed task takes up its own claims.
    """

    def __init__(self, folder: Path, task: int) -> None:
        self._folder, self._own = folder, f"task-{task}"
        self._mine: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        threading.Thread(target=self._beats, daemon=True).start()

    def take(self, name: str) -> bool:
        """Whether the job is ours from now on."""
        path = self._folder / name
        try:
            with path.open("x") as file:
                file.write(self._own)
        except FileExistsError:
            owner = self._owner(path)
            if name in self._mine or (owner != self._own and self._alive(owner)):
                return False
            with suppress(OSError):
                path.write_text(self._own)
        except OSError:
            return False  # the folder is gone: another hand has finished
        self._mine.add(name)
        return True

    def _owner(self, path: Path) -> str:
        try:
            return path.read_text()
        except OSError:
            return ""

    def _alive(self, owner: str) -> bool:
        """By the clock of the file system, since those of machines differ. A claim half written counts as alive."""
        try:
            now = (self._folder / f".{self._own}").stat().st_mtime
            return now - (self._folder / f".{owner}").stat().st_mtime < _DEAD_S
        except OSError:
            return owner == ""

    def _beats(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            self._beat()

    def _beat(self) -> None:
        with suppress(OSError):
            (self._folder / f".{self._own}").write_text("")


class Crew:
    """Does stages of jobs, each to its end before the next."""

    def __init__(
        self, workers: Workers, report: OnProgress, say: Say, claims: Claims | None = None, turn: int = 0
    ) -> None:
        self.say = say  # what the user is to know
        self._workers, self._report, self._claims, self._turn = workers, report, claims, turn

    def do(self, stage: str, jobs: Sequence[Job]) -> None:
        """Return once every job's result is there, whoever made it."""
        done = _Done(stage, jobs, self._report)
        while left := done.left():
            if not self._work(self._order(left), done):
                time.sleep(POLL_S)  # others are at the rest

    def _order(self, jobs: list[Job]) -> list[Job]:
        """Large ones first, so that the last to end is short; each machine begins elsewhere."""
        ordered = sorted(jobs, key=lambda job: -job.size)
        return ordered[self._turn % len(ordered) :] + ordered[: self._turn % len(ordered)]

    def _work(self, jobs: Sequence[Job], done: _Done) -> bool:
        """Do what nobody else is at; whether there was any."""
        under_way: dict[Future[int], Job] = {}
        found = False
        for job in jobs:
            if job.result.exists() or not self._take(job):
                continue
            found = True
            if not job.heavy or self._workers.alone:
                done.add(job, job.call())
                continue
            under_way[self._workers.submit(job.call)] = job
            if len(under_way) >= 2 * self._workers.count:
                self._collect(under_way, done)
        while under_way:
            self._collect(under_way, done)
        return found

    def _collect(self, under_way: dict[Future[int], Job], done: _Done) -> None:
        ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
        try:
            for future in ready:
                done.add(under_way.pop(future), future.result())
        except BrokenProcessPool:
            raise InputError(
                f"data.workers={self._workers.count}: a worker process was killed, perhaps for want of memory; "
                "the same command goes on where it was, and fewer workers need less"
            ) from None

    def _take(self, job: Job) -> bool:
        return self._claims is None or self._claims.take(f"{job.result.parent.name}-{job.result.name}")


class _Done:
    """How far a stage is."""

    def __init__(self, stage: str, jobs: Sequence[Job], report: OnProgress) -> None:
        self._stage, self._left, self._report = stage, {job.result: job for job in jobs}, report
        self._total, self._bytes, self._tokens = sum(job.size for job in jobs), 0, 0
        self._report(stage, 0, self._total, 0)

    def left(self) -> list[Job]:
        """Jobs without a result; what others, or an earlier life, have done counts as done."""
        present = {folder: _names(folder) for folder in {result.parent for result in self._left}}
        for job in [job for job in self._left.values() if job.result.name in present[job.result.parent]]:
            self.add(job, 0)
        return list(self._left.values())

    def add(self, job: Job, tokens: int) -> None:
        self._left.pop(job.result, None)
        self._bytes += job.size
        self._tokens += tokens
        self._report(self._stage, self._bytes, self._total, self._tokens)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 – names, of which there may be many
    except OSError:
        return set()
