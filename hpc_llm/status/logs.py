"""Which log of a run to read, what went wrong first, and new lines as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery import failures
from hpc_llm.recovery.failures import Failure
from hpc_llm.runs import attempts
from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage.files import tail

_TAIL_LINES = 40
_TAIL_BYTES = 65536
_POLL_S = 1.0


@dataclass(frozen=True)
class Log:
    """The file to read."""

    path: Path
    attempt: int  # 0 before the first
    failure: Failure | None  # the first error that a rank of that attempt logged


def choose(layout: RunLayout, rank: int | None) -> Log:
    """Of the newest attempt: the log of `rank`, else of the rank that failed first, else of rank 0.

    If no rank has a log: the supervisor's, and before the first attempt Slurm's own. InputError if
    there is no log, or no such rank.
    """
    number = attempts.newest(layout)
    logs: list[Path] = []
    if number > 0:
        logs = sorted(layout.attempt(number).glob("rank-*.log"))
    failure = failures.first(failures.tails(logs))
    if rank is not None:
        return Log(_log_of_rank(layout, number, rank, logs), number, failure)
    if logs:
        failed = layout.rank_log(number, 0)
        if failure is not None:
            failed = layout.rank_log(number, failure.rank)
        return Log(failed if failed in logs else logs[0], number, failure)
    others = sorted(layout.slurm.glob("*.log"), key=lambda path: path.stat().st_mtime)[-1:]
    if number > 0:
        others.insert(0, layout.supervisor_log(number))
    for path in others:
        if path.exists():
            return Log(path, number, None)
    raise InputError(
        f"{layout.path}: no logs yet, it has not started; squeue --me shows what it is waiting for"
    )


def _log_of_rank(layout: RunLayout, attempt: int, rank: int, logs: list[Path]) -> Path:
    log = layout.rank_log(attempt, rank)
    if log in logs:
        return log
    there = f"ranks 0 to {len(logs) - 1}" if logs else "none yet"
    raise InputError(
        f"--rank {rank}: attempt {attempt} has no log of this rank; there are: {there}"
    )


def opening(log: Log) -> Iterator[str]:
    """The first error, if there is one, and then the end of the file."""
    if log.failure is not None:
        when = f"attempt {log.attempt}, rank {log.failure.rank}, {log.failure.time}"
        yield f"first error ({when}): {log.failure.error}"
        yield from log.failure.text.splitlines()
        yield ""
    yield f"{log.path}:"
    yield from tail(log.path, _TAIL_BYTES).splitlines()[-_TAIL_LINES:]


def follow(
    layout: RunLayout, rank: int | None, wait: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """As `opening`, then new whole lines for ever, also of the attempts that follow."""
    log = choose(layout, rank)
    offset = log.path.stat().st_size
    yield from opening(log)
    while True:
        with log.path.open("rb") as file:
            file.seek(offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        offset += len(whole)
        yield from whole.decode(errors="replace").splitlines()
        newer = None
        if not whole:
            newer = _newer_log(layout, rank, log.attempt)
        if newer is None:
            wait(_POLL_S)
            continue
        log = newer
        offset = 0
        yield f"{log.path}:"


def _newer_log(layout: RunLayout, rank: int | None, attempt: int) -> Log | None:
    """The log of an attempt after `attempt`; None while its ranks have not begun to write."""
    if attempts.newest(layout) <= attempt:
        return None
    try:
        log = choose(layout, rank)
    except InputError:
        return None
    if log.attempt > attempt and log.path.name.startswith("rank-"):
        return log
    return None
