"""Jobs shared by processes on this machine, and by machines that work in the same folder.

A job is done when its result exists. Results appear whole, by rename, and are the same bytes
whichever worker makes them, so a killed worker loses only its current job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.data.packs import OnProgress
from hpc_llm.preparation.claims import Claims
from hpc_llm.preparation.workers import Workers

Say = Callable[[str], None]
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """A file to make."""

    result: Path
    size: int  # bytes of text: its part of the stage
    call: Callable[[], int]  # makes `result`, and returns its number of new tokens
    heavy: bool = True  # done by a worker; else in this process

    @property
    def claim(self) -> str:
        """Its name among the claims."""
        return f"{self.result.parent.name}-{self.result.name}"

    @classmethod
    def here(cls, result: Path, call: Callable[[], object]) -> Job:
        """A job that this process does itself, as a whole."""

        def make() -> int:
            call()
            return 0

        return cls(result, 0, make, heavy=False)


class FinishedElsewhere(Exception):
    """Other machines have finished all the work and removed its folder."""


class JobRunner:
    """Does stages of jobs, completing each before the next."""

    def __init__(
        self, workers: Workers, report: OnProgress, say: Say, claims: Claims | None = None
    ) -> None:
        self.say = say  # prints a line for the user
        self._workers = workers
        self._report = report
        self._claims = claims

    def do(self, stage: str, jobs: Sequence[Job]) -> None:
        """Return once every job's result exists, whichever machine made it.

        FinishedElsewhere if others have finished everything.
        """
        done = _Done(stage, jobs, self._report)
        while left := done.left():
            if self._work(self._order(left), done):
                continue
            if self._claims is not None and self._claims.over():
                raise FinishedElsewhere
            time.sleep(POLL_S)  # others are doing the rest

    def _order(self, jobs: list[Job]) -> list[Job]:
        """Large jobs first, so that the last to end is short.

        Each machine starts at a different one.
        """
        ordered = sorted(jobs, key=lambda job: -job.size)
        if self._claims is None:
            return ordered
        first = self._claims.task % len(ordered)
        return ordered[first:] + ordered[:first]

    def _work(self, jobs: Sequence[Job], done: _Done) -> bool:
        """Do all unclaimed jobs; whether there were any."""
        under_way: dict[Future[int], Job] = {}
        any_taken = False
        for job in jobs:
            if job.result.exists() or not self._take(job):
                continue
            any_taken = True
            if not job.heavy or self._workers.alone:
                self._note(job, job.call(), done)
                continue
            under_way[self._workers.submit(job.call)] = job
            if len(under_way) >= 2 * self._workers.count:
                self._collect(under_way, done)
        while under_way:
            self._collect(under_way, done)
        return any_taken

    def _collect(self, under_way: dict[Future[int], Job], done: _Done) -> None:
        ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
        try:
            for future in ready:
                self._note(under_way.pop(future), future.result(), done)
        except BrokenProcessPool:
            raise InputError(
                f"data.workers={self._workers.count}: a worker process was killed, perhaps "
                "because memory ran out; the same command continues where it stopped, and fewer "
                "workers need less memory"
            ) from None

    def _take(self, job: Job) -> bool:
        if self._claims is None:
            return True
        if not self._claims.take(job.claim):
            return False
        if job.result.exists():  # done between the check and the claim
            self._claims.drop(job.claim)
            return False
        return True

    def _note(self, job: Job, tokens: int, done: _Done) -> None:
        if self._claims is not None:
            self._claims.drop(job.claim)
        done.add(job, tokens)


class _Done:
    """How far a stage is."""

    def __init__(self, stage: str, jobs: Sequence[Job], report: OnProgress) -> None:
        self._stage = stage
        self._left = {job.result: job for job in jobs}
        self._report = report
        self._total = sum(job.size for job in jobs)
        self._bytes = 0
        self._tokens = 0
        self._report(stage, 0, self._total, 0)

    def left(self) -> list[Job]:
        """Jobs without a result; those done by others, or in an earlier life, count as done."""
        present: dict[Path, set[str]] = {}
        for job in list(self._left.values()):
            folder = job.result.parent
            if folder not in present:
                present[folder] = _names(folder)
            if job.result.name in present[folder]:
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
