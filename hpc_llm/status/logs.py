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
    """The file to read. attempt: 0 before the first; failure: the first error that a rank of that
    attempt logged.
    """

    path: Path
    attempt: int
    failure: Failure | None


def choose(layout: RunLayout, rank: int | None) -> Log:
    """Of the newest attempt: the log of `rank`, else of the rank that failed first, else of rank 0.

    If no rank has a log: the supervisor's, and before the first attempt Slurm's own. InputError if
    there is no log, or no such rank.
    """
    number = attempts.newest(layout)
    ranks = sorted(layout.attempt(number).glob("rank-*.log")) if number else []
    failure = failures.first(failures.tails(ranks))
    if rank is not None:
        wanted = layout.rank_log(number, rank)
        if wanted not in ranks:
            there = f"ranks 0 to {len(ranks) - 1}" if ranks else "none yet"
            raise InputError(
                f"--rank {rank}: attempt {number} has no log of this rank; there are: {there}"
            )
        return Log(wanted, number, failure)
    if ranks:
        failed = layout.rank_log(number, failure.rank if failure else 0)
        return Log(failed if failed in ranks else ranks[0], number, failure)
    written = sorted(layout.slurm.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for path in [layout.supervisor_log(number)] * (number > 0) + written[-1:]:
        if path.exists():
            return Log(path, number, None)
    raise InputError(
        f"{layout.path}: no logs yet, it has not started; squeue --me shows what it is waiting for"
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
    """As `opening`, then new whole lines for ever, continuing with a newer attempt's file once
    there is one.
    """
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
        if (
            attempts.newest(layout) > log.attempt
            and not whole
            and (newer := _of_newer(layout, rank, log.attempt))
        ):
            log = newer
            offset = 0
            yield f"{log.path}:"
            continue
        wait(_POLL_S)


def _of_newer(layout: RunLayout, rank: int | None, attempt: int) -> Log | None:
    """The log of an attempt after `attempt`; None while its ranks have not begun to write."""
    try:
        found = choose(layout, rank)
    except InputError:
        return None
    return found if found.attempt > attempt and found.path.name.startswith("rank-") else None
