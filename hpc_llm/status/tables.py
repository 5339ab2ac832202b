"""Rows of standings for a person: columns, durations, alignment. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_llm.recovery import failures
from hpc_llm.recovery.accounting import Account
from hpc_llm.runs import attempts, ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.team import Team
from hpc_llm.status import timeline
from hpc_llm.status.standing import RootStatus


def seconds(value: float | None) -> str:
    """45s, 12m, 3h05m, 2d04h: two units at most."""
    if value is None:
        return "-"
    whole = round(abs(value))
    days = whole // 86400
    hours = whole // 3600 % 24
    minutes = whole // 60 % 60
    text = f"{whole}s" if whole < 60 else f"{minutes}m"
    if days or hours:
        text = f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m"
    return f"-{text}" if value < 0 and whole else text


def causes(row: Mapping[str, Any]) -> str:
    """How often it restarted, and why: `3 (2 crash, 1 preempted)`."""
    found = ", ".join(f"{count} {cause}" for cause, count in row["restarts_by_cause"].items())
    return f"{row['restarts']} ({found})" if found else str(row["restarts"])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def plain(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


Column = tuple[str, Callable[[dict[str, Any]], str]]

# As in squeue, the job id comes first.
RUNS: list[Column] = [
    ("JOB", lambda row: plain(row["job_id"])),
    ("RUN", lambda row: row["run"]),
    ("STATE", lambda row: row["state"]),
    ("CAUSE", lambda row: plain(row["cause"])),
    ("STEP", lambda row: f"{row['step']}/{row['steps']}"),
    ("LOSS", lambda row: plain(row["loss"])),
    (
        "TOKENS/S",
        lambda row: "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
    ),
    ("MFU", lambda row: percent(row["mfu"])),
    ("ETA", lambda row: seconds(row["eta_s"])),
    ("LIMIT", lambda row: seconds(row["limit_s"])),
    (
        "SAVED",
        lambda row: (
            "-" if row["checkpoint_age_s"] is None else f"{seconds(row['checkpoint_age_s'])} ago"
        ),
    ),
    ("RESTARTS", causes),
    ("ETTR", lambda row: percent(row["ettr"])),
    ("NODES", lambda row: row["nodes"] or "-"),
]


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """Columns as wide as they need to be; the last is not padded."""
    return aligned(
        [[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


# -- What `status` prints for people: the table of a root, one run with its story, the nodes.


NODES: list[Column] = [
    ("NODE", lambda row: row["node"]),
    ("SCORE", lambda row: plain(row["score"])),
    ("EXCLUDED_UNTIL", lambda row: _until(row["excluded_until"])),
    ("EVIDENCE", lambda row: _evidence(row["evidence"])),
]

USERS: list[Column] = [
    ("USER", lambda row: row["name"]),
    ("ACCOUNT", lambda row: row["account"] or "-"),
    ("RUNNING", lambda row: f"{row['running']} ({row['running_jobs']} jobs)"),
    ("QUEUED", lambda row: f"{row['queued']} ({row['queued_jobs']} jobs)"),
    ("FAIRSHARE", lambda row: plain(row["fair_share"])),
    ("USED/SHARE", lambda row: "-" if row["share_used"] is None else f"{row['share_used']:.2f}"),
]
PARTITIONS: list[Column] = [
    ("PARTITION", lambda row: row["name"]),
    ("GPUS", lambda row: str(row["total"])),
    ("USED", lambda row: str(row["used"])),
    ("FREE", lambda row: str(row["free"])),
    ("DOWN", lambda row: str(row["down"])),
]


def render_root(root: Path, found: RootStatus) -> Iterator[str]:
    """Every run's line, where the time went, and nodes left out; where `root` is a run itself, that
    one in detail.
    """
    yield table(found.rows, RUNS)
    yield from _account(found.account)
    run = RunLayout(root)
    if run.config.exists():
        yield from _story(run)
        return
    excluded = [row["node"] for row in found.nodes if row["excluded_until"] is not None]
    if excluded:
        yield f"nodes left out: {', '.join(excluded)} (--nodes says why)"


def render_team(found: Team) -> Iterator[str]:
    """GPUs by user, and what the partitions hold."""
    accounts = ", ".join(found.accounts) or "all users (Slurm keeps no accounts for you)"
    running = sum(user.running for user in found.users)
    queued = sum(user.queued for user in found.users)
    yield f"{accounts}: {running} GPUs running, {queued} queued"
    yield table([asdict(user) for user in found.users], USERS)
    yield ""
    yield table([{**asdict(one), "free": one.free} for one in found.partitions], PARTITIONS)


def render_nodes(rows: Sequence[dict[str, Any]]) -> str:
    """Every node with evidence against it."""
    return table(rows, NODES)


def _story(run: RunLayout) -> Iterator[str]:
    """What happened, and the newest attempt's first error."""
    yield f"\n{run.path}"
    yield from timeline.lines(ledger.read(run.ledger))
    number = attempts.newest(run)
    failure = (
        failures.first(failures.tails(run.attempt(number).glob("rank-*.log"))) if number else None
    )
    if failure is not None:
        yield (
            f"first error of attempt {number}: rank {failure.rank}, {failure.error} (--logs "
            "shows it)"
        )


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
    yield (
        f"ETTR {account.ettr:.1%}, without the queue {account.ettr_scheduled:.1%}; of all "
        f"time: {rest}"
    )


def _until(when: float | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _evidence(seen: Sequence[dict[str, Any]]) -> str:
    kinds = [one["kind"] for one in seen]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
