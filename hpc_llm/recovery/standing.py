"""Where runs stand, for `status`: one row per run from its directory and Slurm's queue."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.recovery import loop
from hpc_llm.recovery.acts import Seen
from hpc_llm.runs import attempts
from hpc_llm.runs.layout import RunLayout

_TAIL_BYTES = 4096
_HEARTBEAT_FRESH_S = 30.0  # the supervisor beats every 10 s


def rows(root: Path) -> list[dict[str, Any]]:
    """name, job_id, state, cause, step, steps, loss, checkpoint_step and restarts of every run below `root`.

    state: queued, running, completed, failed, stopped, cancelled or unknown.
    """
    return [row(seen) for seen in loop.look(root)]


def row(seen: Seen) -> dict[str, Any]:
    """One run's row."""
    layout, facts = seen.record.layout, seen.record.facts
    ends = [event.facts for event in seen.record.events if event.event == "ended"]
    last = last_step(layout)
    return {
        "name": layout.name,
        "job_id": facts.address,
        "state": state_of(seen),
        "cause": ends[-1]["cause"] if ends else facts.final,
        "step": last.get("step", 0),
        "steps": json.loads(layout.plan.read_text())["steps"],
        "loss": last.get("loss"),
        "checkpoint_step": newest_step(layout.checkpoints),
        "restarts": max(0, attempts.newest(layout) - 1),
    }


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
