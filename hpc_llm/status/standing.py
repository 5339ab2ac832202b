"""Where the runs of a root stand: one row per run, from its directory and Slurm's queue."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config import hints
from hpc_llm.recovery import look, outside
from hpc_llm.recovery.accounting import Account, account, restarts_by_cause
from hpc_llm.recovery.budgets import spent_of
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import Seen
from hpc_llm.recovery.observations import RunSummary
from hpc_llm.runs import attempts, event_names
from hpc_llm.runs.layout import RootLayout
from hpc_llm.runs.story import Story
from hpc_llm.slurm import reasons
from hpc_llm.status import progress
from hpc_llm.status.node_rows import node_rows

# Fifteen passes of the default, three of a cron that looks every five minutes.
_WATCHDOG_SILENT_S = 900.0
_HEARTBEAT_FRESH_S = 30.0  # the supervisor beats every 10 s
_STATES = {
    event_names.CANCELLED: "cancelled",
    Cause.STOPPED.value: "stopped",
    event_names.HALVED: "stopped",
}  # of a run that has ended, by why it did; others have failed


@dataclass(frozen=True)
class RootStatus:
    """All runs of a root."""

    runs: list[Seen]
    rows: list[dict[str, Any]]
    account: Account  # GPU-seconds of all runs
    nodes: list[dict[str, Any]]  # with evidence against them, the worst first
    warnings: list[str]


def status_of(root: Path) -> RootStatus:
    """Where every run at or below `root` stands. Two questions to Slurm."""
    now = time.time()
    rows = []
    total = Account()
    warnings = list[str]()
    runs = look.look_at_root(root)
    for seen in runs:
        try:
            row = row_of(root, seen, now)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            warnings.append(f"{seen.record.layout.path}: passed over, it cannot be read ({why})")
            continue
        rows.append(row)
        total += Account(**row["seconds"]) * seen.record.config.cluster.held_gpus
    nodes = node_rows(root, [seen.record for seen in runs])
    warnings += look.in_other_clusters(runs)
    warnings += _warnings(root, rows, now)
    return RootStatus(runs, rows, total, nodes, warnings)


def row_of(root: Path, seen: Seen, now: float) -> dict[str, Any]:
    """One run's row; keys that end in _s are seconds from now.

    Its keys are those of `status --json`, which users' scripts read.
    """
    layout = seen.record.layout
    story = seen.record.story
    state = state_of(seen)
    plan = json.loads(layout.plan.read_text())
    steps = progress.last_steps(layout)
    speed = progress.usual_speed(steps)
    last: dict[str, Any] = {}
    if steps:
        last = steps[-1]
    step = last.get("step", 0)
    row = {
        "name": layout.name,
        "run": _path_below(root, seen),
        "job_id": seen.record.summary.address,
        "state": state,
        "cause": _cause(seen),
        "step": step,
        "steps": plan["steps"],
        "loss": last.get("loss"),
        "tokens_per_second": speed,
        "mfu": last.get("mfu"),
        "eta_s": None,
        "limit_s": None,
        "nodes": "",
        "checkpoint_step": newest_step(layout.checkpoints),
        "checkpoint_age_s": _checkpoint_age_s(story, now),
        "reason": None,
        "start_s": None,
        "needs": None,
        "budgets": _budgets(seen),
        "restarts": max(0, attempts.newest(layout) - 1),
        "restarts_by_cause": restarts_by_cause(story),
    }
    until = None
    if state in ("queued", "running"):
        until = now
        row["eta_s"] = progress.eta_s(step, plan, speed)
        row["nodes"] = _nodes(seen)
    if state == "running":
        row["limit_s"] = _limit_s(seen, now)
    queued = seen.job.queued
    if state == "queued" and queued is not None:
        row |= {"reason": queued.reason, "needs": outside.needs_user(seen.record.summary, seen.job)}
        if queued.start_time is not None:
            row["start_s"] = queued.start_time - now
    first_step_at = progress.first_step_at(layout)
    spent = account(story, until=until, first_step_at=first_step_at)
    ettr = {"ettr": spent.ettr, "ettr_scheduled": spent.ettr_scheduled}
    if first_step_at is None and not story.saves:
        ettr = dict.fromkeys(ettr)  # no step was done: there is nothing to tell
    return {**row, **ettr, "seconds": asdict(spent)}


def state_of(seen: Seen) -> str:
    """queued, running, completed, failed, stopped, cancelled or unknown."""
    run = seen.record.summary
    if run.completed:
        return "completed"
    if run.final is not None:
        return _STATES.get(run.final, "failed")
    if seen.record.story.is_waiting():
        return "queued"
    if run.address is None:  # on the machine where it was typed
        return "running" if _beats(run) else "unknown"
    queued = seen.job.queued
    if queued is not None and queued.live:
        return "queued" if queued.waiting else "running"
    return "cancelled" if seen.job.state == "CANCELLED" else "unknown"


def _budgets(seen: Seen) -> dict[str, int]:
    """What is left of each budget of which something was used, by its key."""
    run = seen.record.summary
    left = dict[str, int]()
    for spending in spent_of(run.history, run.budgets):
        if spending.limit is not None:
            rest = max(0, spending.limit - spending.used)
            left[spending.budget] = min(rest, left.get(spending.budget, rest))
    return left


def _beats(run: RunSummary) -> bool:
    return run.heartbeat_at is not None and time.time() - run.heartbeat_at < _HEARTBEAT_FRESH_S


def _path_below(root: Path, seen: Seen) -> str:
    path = seen.record.layout.path
    if path == root:
        return path.name
    return str(path.relative_to(root))


def _cause(seen: Seen) -> str | None:
    """What ended the newest attempt, or what the run waits for or was stopped by."""
    final = seen.record.summary.final
    story = seen.record.story
    if final == event_names.HALVED or story.is_waiting():
        return final or "no-room"
    queued = seen.job.queued
    if final is None and queued is not None and queued.pending:
        if reasons.hold_of(queued) is not None:
            return "held"
        if reasons.remedy(queued) is not None:
            return queued.reason
    for end in reversed(story.ends):
        if end.name == event_names.ENDED:
            return end.cause
    return final


def _limit_s(seen: Seen, now: float) -> float | None:
    """Until the job's time limit, as it was submitted.

    None where it has none, or Slurm does not say when it began.
    """
    minutes = seen.record.config.cluster.time_min
    job = seen.job.queued
    if minutes is None or job is None or job.start_time is None:
        return None
    return job.start_time + float(minutes) * 60 - now


def _nodes(seen: Seen) -> str:
    """Where it trains, in Slurm's spelling; here, the machine's name."""
    if seen.job.queued is not None:
        return seen.job.queued.node_list
    if not seen.record.story.attempts:
        return ""
    newest = seen.record.story.attempts[-1]
    return ",".join(newest.nodes or [newest.host or ""])


def _checkpoint_age_s(story: Story, now: float) -> float | None:
    if not story.saves:
        return None
    return now - max(save.time for save in story.saves)


def _warnings(root: Path, rows: Sequence[dict[str, Any]], now: float) -> Iterator[str]:
    """The dead-man's line: jobs wait or train, and no watchdog has been here for a while."""
    num_live = sum(_needs_a_watchdog(row) for row in rows)
    last_pass = RootLayout(root).last_pass
    if num_live == 0 or not last_pass.exists():
        return  # no watchdog runs; supervise.successor may do its work
    silent_s = now - last_pass.stat().st_mtime
    if silent_s > _WATCHDOG_SILENT_S:
        who = "?"
        with contextlib.suppress(PermissionError):  # a colleague's
            who = json.loads(last_pass.read_text() or "{}").get("host", "?")
        yield (
            f"the watchdog's last pass was {silent_s / 60:.0f} min ago (on {who}) and {num_live} "
            f"runs are not done: start it again, {hints.command('watchdog', str(root))}"
        )


def _needs_a_watchdog(row: dict[str, Any]) -> bool:
    return row["job_id"] is not None and row["state"] in ("queued", "running", "unknown")
