"""What `status` prints for people: the runs of a root, one run with its story, nodes, the team."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
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
from hpc_llm.status.tables import Column, number, percent, plain, seconds, table

_MANY = 3  # runs that wait for the same are named up to here


def render_root(root: Path, status: RootStatus) -> Iterator[str]:
    """Every run's line, where the time went, and excluded nodes.

    Where `root` is a run itself, that one in detail.
    """
    yield table(status.rows, RUNS)
    if any(row["ettr"] is not None for row in status.rows):
        yield from _account(status.account)
    run = RunLayout(root)
    yield from _queued(status)
    if run.config.exists():
        yield from _budgets(status)
        yield from _story(run, status)
        return
    excluded = []
    for row in status.nodes:
        if row["excluded_until"] is not None:
            excluded.append(row["node"])
    if excluded:
        yield f"nodes left out: {', '.join(excluded)} (--nodes says why)"


def _queued(status: RootStatus) -> Iterator[str]:
    """Why jobs wait, and what to do about those that nobody else helps; a line for many alike."""
    waiting: dict[str, list[str]] = {}
    for row in status.rows:
        if row["reason"] is None:
            continue
        text = row["needs"] or row["reason"]
        if row["start_s"] is not None and row["start_s"] > 0 and row["needs"] is None:
            text = f"{text}, expected to start in {seconds(row['start_s'])}"
        waiting.setdefault(text, []).append(row["run"])
    for text, runs in waiting.items():
        names = ", ".join(runs) if len(runs) <= _MANY else f"{len(runs)} runs"
        yield f"queued: {names}: {text}"


def _budgets(status: RootStatus) -> Iterator[str]:
    """What is left of the budgets that were used of late."""
    left = []
    for row in status.rows:
        for budget, rest in row["budgets"].items():
            left.append(f"{budget} {rest}")
    if left:
        yield f"left of budgets: {', '.join(left)} (24 h of training and 1 % of the steps refill)"


def render_team(team: Team) -> Iterator[str]:
    """GPUs by user, and what the partitions hold."""
    accounts = ", ".join(team.accounts) or "all users (Slurm keeps no accounts for you)"
    running = sum(user.running for user in team.users)
    queued = sum(user.queued for user in team.users)
    yield f"{accounts}: {running} GPUs running, {queued} queued"
    yield table([asdict(user) for user in team.users], USERS)
    yield ""
    if team.refused is not None:
        yield f"partitions: not shown by this site ({team.refused})"
        return
    partitions = []
    for partition in team.partitions:
        partitions.append({**asdict(partition), "free": partition.free})
    yield table(partitions, PARTITIONS)


def render_nodes(rows: Sequence[dict[str, Any]]) -> str:
    """Every node with evidence against it."""
    return table(rows, NODES)


def _story(run: RunLayout, status: RootStatus) -> Iterator[str]:
    """What happened, and the newest attempt's first error."""
    yield f"\n{run.path}"
    if status.runs:
        yield from timeline.lines(status.runs[0].record.story.events)
    else:  # it cannot be read as a whole
        yield from timeline.lines(ledger.read(run.ledger))
    attempt = attempts.newest(run)
    if attempt == 0:
        return
    logs = failures.tails(run.attempt(attempt).glob("rank-*.log"))
    failure = failures.first(logs, _first_failed(status))
    if failure is not None:
        where = f"first error of attempt {attempt}: rank {failure.rank}"
        yield f"{where}, {failure.error} (--logs shows it)"


def _first_failed(status: RootStatus) -> int | None:
    """The rank that failed first in the newest attempt, as its launcher saw it."""
    for seen in status.runs[:1]:
        for end in reversed(seen.record.story.ends):
            if end.attempt == seen.record.summary.attempt:
                return end.first_failed
    return None


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
    shares = ", ".join(f"{name} {part_s / account.wall_s:.1%}" for name, part_s in parts.items())
    ettr = f"ETTR {account.ettr:.1%}, without the queue {account.ettr_scheduled:.1%}"
    yield f"{ettr}; of all time: {shares}"


def _restarts(row: dict[str, Any]) -> str:
    """How often it restarted, and why: `3 (2 crash, 1 preempted)`."""
    causes = ", ".join(f"{count} {cause}" for cause, count in row["restarts_by_cause"].items())
    if not causes:
        return str(row["restarts"])
    return f"{row['restarts']} ({causes})"


def _saved(row: dict[str, Any]) -> str:
    age_s = row["checkpoint_age_s"]
    if age_s is None:
        return "-"
    return f"{seconds(age_s)} ago"


def _until(row: dict[str, Any]) -> str:
    when = row["excluded_until"]
    if when is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _evidence(row: dict[str, Any]) -> str:
    """`2 × death, 1 × hang`"""
    kinds = Counter(seen["kind"] for seen in row["evidence"])
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())


# As in squeue, the job id comes first.
RUNS: list[Column] = [
    ("JOB", lambda row: plain(row["job_id"])),
    ("RUN", lambda row: row["run"]),
    ("STATE", lambda row: row["state"]),
    ("CAUSE", lambda row: plain(row["cause"])),
    ("STEP", lambda row: f"{row['step']}/{row['steps']}"),
    ("LOSS", lambda row: plain(row["loss"])),
    ("TOKENS/S", lambda row: number(row["tokens_per_second"], ",.0f")),
    ("MFU", lambda row: percent(row["mfu"])),
    ("ETA", lambda row: seconds(row["eta_s"])),
    ("LIMIT", lambda row: seconds(row["limit_s"])),
    ("SAVED", _saved),
    ("RESTARTS", _restarts),
    ("ETTR", lambda row: percent(row["ettr"])),
    ("NODES", lambda row: row["nodes"] or "-"),
]
NODES: list[Column] = [
    ("NODE", lambda row: row["node"]),
    ("SCORE", lambda row: plain(row["score"])),
    ("EXCLUDED_UNTIL", _until),
    ("EVIDENCE", _evidence),
]
USERS: list[Column] = [
    ("USER", lambda row: row["name"]),
    ("ACCOUNT", lambda row: row["account"] or "-"),
    ("RUNNING", lambda row: f"{row['running']} ({row['running_jobs']} jobs)"),
    ("QUEUED", lambda row: f"{row['queued']} ({row['queued_jobs']} jobs)"),
    ("FAIRSHARE", lambda row: plain(row["fair_share"])),
    ("USED/SHARE", lambda row: number(row["share_used"], ".2f")),
]
PARTITIONS: list[Column] = [
    ("PARTITION", lambda row: row["name"]),
    ("GPUS", lambda row: str(row["total"])),
    ("USED", lambda row: str(row["used"])),
    ("FREE", lambda row: str(row["free"])),
    ("DOWN", lambda row: str(row["down"])),
]
