"""Where runs stand, for `status`: one row per run from its directory and Slurm's queue; where their
time went.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import look, node_evidence
from hpc_llm.recovery.accounting import Account, account, restarts_by_cause
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import RunRecord, Seen
from hpc_llm.runs import attempts, event_names
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.story import Story
from hpc_llm.storage.files import tail

_TAIL_BYTES = 4096
_WATCHDOG_SILENT_S = (
    900.0  # fifteen passes of the default, three of a cron that looks every five minutes
)
_STATES = {
    event_names.CANCELLED: "cancelled",
    Cause.STOPPED.value: "stopped",
    event_names.HALVED: "stopped",
}  # of a run that has ended, by why it did; others have failed
_HEARTBEAT_FRESH_S = 30.0  # the supervisor beats every 10 s


@dataclass(frozen=True)
class RootStatus:
    """All runs of a root."""

    rows: list[dict[str, Any]]
    account: Account  # GPU-seconds of all runs
    nodes: list[dict[str, Any]]  # with evidence against them, the worst first
    warnings: list[str]


def status_of(root: Path) -> RootStatus:
    """name, job_id, state, cause, step, steps, loss, checkpoint_step, restarts, ettr and more of
    every run at or below `root`; state: queued, running, completed, failed, stopped, cancelled or
    unknown. Two questions to Slurm.
    """
    now = time.time()
    rows = []
    total = Account()
    warnings = list[str]()
    runs = look.look_at_all(root)
    for seen in runs:
        try:
            found = row(root, seen, now)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            warnings.append(f"{seen.record.layout.path}: passed over, it cannot be read ({why})")
            continue
        rows.append(found)
        total += Account(**found["seconds"]) * seen.record.config.cluster.held_gpus
    evidence = node_rows(root, [seen.record for seen in runs])
    return RootStatus(rows, total, evidence, [*warnings, *_warnings(root, rows, now)])


def row(root: Path, seen: Seen, now: float) -> dict[str, Any]:
    """One run's row; keys that end in _s are seconds from now."""
    record = seen.record
    layout = record.layout
    facts = record.facts
    story = record.story
    steps = last_steps(layout)
    state = state_of(seen)
    plan = json.loads(layout.plan.read_text())
    last = steps[-1] if steps else {}
    going = state in ("queued", "running")
    until = now if going else None
    spent = account(story, until=until, first_step_at=first_step_at(layout))
    return {
        "name": layout.name,
        "run": str(layout.path.relative_to(root)) if layout.path != root else layout.name,
        "job_id": facts.address,
        "state": state,
        "cause": _cause(seen),
        "step": last.get("step", 0),
        "steps": plan["steps"],
        "loss": last.get("loss"),
        "tokens_per_second": (speed := usual_speed(steps)),
        "mfu": last.get("mfu"),
        "eta_s": eta_s(last.get("step", 0), plan, speed) if going else None,
        "limit_s": limit_s(seen, now) if state == "running" else None,
        "nodes": _nodes(seen) if going else "",
        "checkpoint_step": newest_step(layout.checkpoints),
        "checkpoint_age_s": _checkpoint_age_s(story, now),
        "restarts": max(0, attempts.newest(layout) - 1),
        "restarts_by_cause": restarts_by_cause(story),
        "ettr": spent.ettr,
        "ettr_scheduled": spent.ettr_scheduled,
        "seconds": asdict(spent),
    }


def nodes_of(root: Path) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first; Slurm is not asked."""
    return node_rows(root, look.read_all(root))


def _warnings(root: Path, rows: Sequence[dict[str, Any]], now: float) -> Iterator[str]:
    """The dead-man's line: jobs wait or train, and no watchdog has been here for a while."""
    live = [
        row
        for row in rows
        if row["job_id"] is not None and row["state"] in ("queued", "running", "unknown")
    ]
    last_pass = RootLayout(root).last_pass
    if not live or not last_pass.exists():
        return  # nobody runs one; recovery.successor may do its work
    silent_s = now - last_pass.stat().st_mtime
    if silent_s > _WATCHDOG_SILENT_S:
        who = "?"
        with contextlib.suppress(PermissionError):  # a colleague's
            who = json.loads(last_pass.read_text() or "{}").get("host", "?")
        yield (
            f"the watchdog's last pass was {silent_s / 60:.0f} min ago (on {who}) and {len(live)} "
            f"runs are not done: start it again, python -m hpc_llm.watchdog {root}"
        )


def _cause(seen: Seen) -> str | None:
    """What ended the newest attempt, or what the run waits for or was stopped by."""
    facts = seen.record.facts
    story = seen.record.story
    if facts.final == event_names.HALVED or story.is_waiting():
        return facts.final or "no-room"
    causes = [end.cause for end in story.ends if end.name == event_names.ENDED]
    return causes[-1] if causes else facts.final


def state_of(seen: Seen) -> str:
    """The run's state in one word."""
    facts = seen.record.facts
    job = seen.job
    if facts.completed:
        return "completed"
    if facts.final is not None:
        return _STATES.get(facts.final, "failed")
    if seen.record.story.is_waiting():
        return "queued"
    if facts.address is None:  # on the machine where it was typed
        alive = (
            facts.heartbeat_at is not None and time.time() - facts.heartbeat_at < _HEARTBEAT_FRESH_S
        )
        return "running" if alive else "unknown"
    if job.queued is not None and job.queued.live:
        return "queued" if job.queued.state in ("PENDING", "REQUEUED", "COMPLETING") else "running"
    state = job.queued.state if job.queued else job.last_life.state if job.last_life else None
    if state == "CANCELLED":
        return "cancelled"
    return "unknown"


def first_step_at(layout: RunLayout) -> float | None:
    """When the run's first step was done, by metrics.jsonl: seconds since the epoch."""
    try:
        with layout.metrics.open() as file:
            found = json.loads(file.readline())["time"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found)


def last_steps(layout: RunLayout) -> list[dict[str, Any]]:
    """The newest whole rows of steps in metrics.jsonl, oldest first; reads its end alone."""
    try:
        lines = tail(layout.metrics, _TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(
            json.JSONDecodeError
        ):  # cut off by the tail's beginning, or being written
            row = json.loads(line)
            if isinstance(row, dict) and "loss" in row:
                found.append(row)
    return found


def usual_speed(steps: Sequence[dict[str, Any]]) -> float | None:
    """Tokens per second: the median of the newest steps, since one of them may have waited for a
    save.
    """
    speeds = [float(row["tokens_per_second"]) for row in steps if "tokens_per_second" in row]
    return statistics.median(speeds) if speeds else None


def eta_s(step: int, plan: dict[str, Any], tokens_per_second: float | None) -> float | None:
    """Training time that is left at the present speed; saves, evaluations and the queue come on
    top.
    """
    if not tokens_per_second or "tokens_per_step" not in plan:
        return None
    return float(plan["steps"] - step) * float(plan["tokens_per_step"]) / tokens_per_second


def limit_s(seen: Seen, now: float) -> float | None:
    """Until the job's time limit, as it was submitted; None where it has none, or Slurm does not
    say when it began.
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
    attempts_so_far = seen.record.story.attempts
    if not attempts_so_far:
        return ""
    newest = attempts_so_far[-1]
    return ",".join(newest.nodes or [newest.host or ""])


def _checkpoint_age_s(story: Story, now: float) -> float | None:
    newest = max((save.time for save in story.saves), default=None)
    return None if newest is None else now - newest


# -- Nodes with evidence against them, as the runs of a root leave them out: for `status`.


def node_rows(root: Path, records: Collection[RunRecord]) -> list[dict[str, Any]]:
    """Every node with evidence against it, the worst first; excluded for as long as any of the runs
    leaves it out.
    """
    evidence = node_evidence.read(root)
    now = time.time()
    by_node = defaultdict[str, list[node_evidence.NodeScore]](list)
    for limits in _limits(records):
        for one in node_evidence.node_scores(evidence, now, *limits):
            by_node[one.node].append(one)
    found = [
        max(several, key=lambda one: (one.excluded_until or 0.0, one.score))
        for several in by_node.values()
    ]
    return [
        {
            "node": one.node,
            "score": one.score,
            "excluded_until": one.excluded_until,
            "evidence": [
                {"kind": seen.kind, "run": seen.run, "time": seen.time} for seen in one.evidence
            ],
        }
        for one in sorted(found, key=lambda one: (-one.score, one.node))
    ]


def _limits(records: Collection[RunRecord]) -> set[tuple[float, int]]:
    """recovery.* of the runs that are not over, for those alone leave nodes out; where all are, of
    all.
    """
    going = [
        record for record in records if not record.facts.completed and record.facts.final is None
    ]
    return {node_evidence.limits(record.config.recovery) for record in going or records} or {
        node_evidence.limits(RecoveryConfig())
    }
