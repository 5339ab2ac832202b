"""Where runs stand, for `status`: one row per run from its directory and Slurm's queue; where their time went."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import loop, nodes
from hpc_llm.recovery.accounting import Account, account, restarts_by_cause
from hpc_llm.recovery.acts import Seen
from hpc_llm.runs import attempts
from hpc_llm.runs.layout import RootLayout, RunLayout

_TAIL_BYTES = 4096
_WATCHDOG_SILENT_S = 900.0  # fifteen passes of the default, three of a cron that looks every five minutes
_HEARTBEAT_FRESH_S = 30.0  # the supervisor beats every 10 s


@dataclass(frozen=True)
class Standing:
    """All runs of a root."""

    rows: list[dict[str, Any]]
    account: Account  # GPU-seconds of all runs
    warnings: list[str]


def of(root: Path) -> Standing:
    """name, job_id, state, cause, step, steps, loss, checkpoint_step, restarts, ettr and more of every run at or below
    `root`; state: queued, running, completed, failed, stopped, cancelled or unknown.
    """
    now, rows, total = time.time(), [], Account()
    for seen in loop.look(root):
        found = row(seen, now)
        rows.append(found)
        total += Account(**found["seconds"]) * seen.record.world_size
    return Standing(rows, total, list(_warnings(root, rows, now)))


def row(seen: Seen, now: float) -> dict[str, Any]:
    """One run's row."""
    record = seen.record
    layout, facts, events = record.layout, record.facts, record.events
    ends = [event.facts for event in events if event.event == "ended"]
    last, state = last_step(layout), state_of(seen)
    spent = account(events, until=now if state in ("queued", "running") else None)
    return {
        "name": layout.name,
        "job_id": facts.address,
        "state": state,
        "cause": ends[-1]["cause"] if ends else facts.final,
        "step": last.get("step", 0),
        "steps": json.loads(layout.plan.read_text())["steps"],
        "loss": last.get("loss"),
        "checkpoint_step": newest_step(layout.checkpoints),
        "restarts": max(0, attempts.newest(layout) - 1),
        "restarts_by_cause": restarts_by_cause(events),
        "ettr": spent.ettr,
        "ettr_scheduled": spent.ettr_scheduled,
        "seconds": asdict(spent),
    }


def nodes_of(root: Path) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first."""
    default = RecoveryConfig()
    found = nodes.standings(nodes.read(root), time.time(), default.node_exclusion_h, default.max_excluded_nodes)
    return [
        {
            "node": one.node,
            "score": one.score,
            "excluded_until": one.excluded_until,
            "evidence": [{"kind": seen.kind, "run": seen.run, "time": seen.time} for seen in one.evidence],
        }
        for one in found
    ]


def _warnings(root: Path, rows: Sequence[dict[str, Any]], now: float) -> Iterator[str]:
    """The dead-man's line: jobs wait or train, and no watchdog has been here for a while."""
    live = [row for row in rows if row["job_id"] is not None and row["state"] in ("queued", "running", "unknown")]
    last_pass = RootLayout(root).last_pass
    if not live or not last_pass.exists():
        return  # nobody runs one; recovery.successor may do its work
    silent_s = now - last_pass.stat().st_mtime
    if silent_s > _WATCHDOG_SILENT_S:
        who = json.loads(last_pass.read_text() or "{}").get("host", "?")
        yield (
            f"the watchdog's last pass was {silent_s / 60:.0f} min ago (on {who}) and {len(live)} runs are not done: "
            f"start it again, python -m hpc_llm.watchdog {root}"
        )


def state_of(seen: Seen) -> str:
    """The run's state in one word."""
    facts, job = seen.record.facts, seen.job
    if facts.completed:
        return "completed"
    if facts.final is not None:
        return {"cancelled": "cancelled", "stopped": "stopped"}.get(facts.final, "failed")
    if facts.address is None:  # on the machine where it was typed
        alive = facts.heartbeat_at is not None and time.time() - facts.heartbeat_at < _HEARTBEAT_FRESH_S
        return "running" if alive else "unknown"
    if job.queued is not None and job.queued.live:
        return "queued" if job.queued.state in ("PENDING", "REQUEUED", "COMPLETING") else "running"
    state = job.queued.state if job.queued else job.last_life.state if job.last_life else None
    if state == "CANCELLED":
        return "cancelled"
    return "unknown"


def last_step(layout: RunLayout) -> dict[str, Any]:
    """The newest whole row of a step in metrics.jsonl; reads its end alone."""
    if not layout.metrics.exists():
        return {}
    with layout.metrics.open("rb") as file:
        file.seek(max(0, layout.metrics.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            found: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "loss" in found:
            return found
    return {}
