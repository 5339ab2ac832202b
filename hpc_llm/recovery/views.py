"""What `status` prints for people: the table of a root, one run with its story, the nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_llm.recovery import errors, tables, timeline
from hpc_llm.recovery.accounting import Account
from hpc_llm.recovery.standing import Standing
from hpc_llm.recovery.tables import plain
from hpc_llm.runs import attempts, ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.team import Team

_NODES: list[tables.Column] = [
    ("NODE", lambda row: row["node"]),
    ("SCORE", lambda row: plain(row["score"])),
    ("EXCLUDED_UNTIL", lambda row: _until(row["excluded_until"])),
    ("EVIDENCE", lambda row: _evidence(row["evidence"])),
]

_USERS: list[tables.Column] = [
    ("USER", lambda row: row["name"]),
    ("ACCOUNT", lambda row: row["account"] or "-"),
    ("RUNNING", lambda row: f"{row['running']} ({row['running_jobs']} jobs)"),
    ("QUEUED", lambda row: f"{row['queued']} ({row['queued_jobs']} jobs)"),
    ("FAIRSHARE", lambda row: plain(row["fair_share"])),
    ("USED/SHARE", lambda row: "-" if row["share_used"] is None else f"{row['share_used']:.2f}"),
]
_PARTITIONS: list[tables.Column] = [
    ("PARTITION", lambda row: row["name"]),
    ("GPUS", lambda row: str(row["total"])),
    ("USED", lambda row: str(row["used"])),
    ("FREE", lambda row: str(row["free"])),
    ("DOWN", lambda row: str(row["down"])),
]


def of(root: Path, found: Standing) -> Iterator[str]:
    """Every run's line, where the time went, and nodes left out; where `root` is a run itself, that one in detail."""
    yield tables.of(found.rows, tables.RUNS)
    yield from _account(found.account)
    run = RunLayout(root)
    if run.config.exists():
        yield from _story(run)
        return
    excluded = [row["node"] for row in found.nodes if row["excluded_until"] is not None]
    if excluded:
        yield f"nodes left out: {', '.join(excluded)} (--nodes says why)"


def team(found: Team) -> Iterator[str]:
    """GPUs by user, and what the partitions hold."""
    accounts = ", ".join(found.accounts) or "all users (Slurm keeps no accounts for you)"
    running, queued = sum(user.running for user in found.users), sum(user.queued for user in found.users)
    yield f"{accounts}: {running} GPUs running, {queued} queued"
    yield tables.of([asdict(user) for user in found.users], _USERS)
    yield ""
    yield tables.of([{**asdict(one), "free": one.free} for one in found.partitions], _PARTITIONS)


def nodes(rows: Sequence[dict[str, Any]]) -> str:
    """Every node with evidence against it."""
    return tables.of(rows, _NODES)


def _story(run: RunLayout) -> Iterator[str]:
    """What happened, and the newest attempt's first error."""
    yield f"\n{run.path}"
    yield from timeline.lines(ledger.read(run.ledger))
    number = attempts.newest(run)
    failure = errors.first(errors.tails(run.attempt(number).glob("rank-*.log"))) if number else None
    if failure is not None:
        yield f"first error of attempt {number}: rank {failure.rank}, {failure.error} (--logs shows it)"


def _account(account: Account) -> Iterator[str]:
    """Where the time of all runs went, by their GPUs."""
    if account.ettr is None or account.ettr_scheduled is None:
        return
    parts = {
        "queue": account.queue_s,
        "start-up": account.start_up_s,
        "saves": account.stall_s,
        "lost steps": account.lost_s,
        "detection": account.detection_s,
    }
    rest = ", ".join(f"{name} {seconds / account.wall_s:.1%}" for name, seconds in parts.items())
    yield f"ETTR {account.ettr:.1%}, without the queue {account.ettr_scheduled:.1%}; of all time: {rest}"


def _until(when: float | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _evidence(seen: Sequence[dict[str, Any]]) -> str:
    kinds = [one["kind"] for one in seen]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
