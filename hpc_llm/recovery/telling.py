"""Notifications, once per event: the end of a run or sweep, the first of its runs that needs a person, an excluded
node.

A sweep gets one message, not one for each run. What could not be sent waits for the next pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_llm.recovery import notify
from hpc_llm.recovery.acts import Seen
from hpc_llm.recovery.census import Census
from hpc_llm.recovery.facts import WAITING
from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.told import Told, save
from hpc_llm.recovery.watch import HALVED

_SILENT = ("completed", "cancelled", "stopped", HALVED)  # the user knows already, or need not know
_DAY_S = 86400.0
_FORGET_S = 90 * _DAY_S
_PATIENCE_S = _DAY_S  # how long a failing command or webhook is retried


def note(root: Path, known: Census, told: Told, seen: Mapping[str, Seen], done: Sequence[Seen]) -> None:
    """Put what is new into `told.outbox`."""
    given_up = {run.record.layout.path for run in done if run.decision.action is Action.STOP}
    for path, run in seen.items():
        words = run.record.config.recovery.notify
        last = max((said.time for said in run.record.events), default=0.0)
        if not words or (_aged(last) and run.record.layout.path not in given_up):
            continue
        group = _group(path)
        common = {"name": group, "root": str(root), "time": time.time()}
        for said in (said for said in run.record.events if said.event == "excluded" and not _aged(said.time)):
            day = int(said.time // _DAY_S)  # a node that several runs leave out is told of once
            for node in said.facts["nodes"]:
                left_out = {"event": "excluded", **common, "run": path, "node": node, "why": said.facts.get("why", "")}
                _once(told, f"excluded {node} {day}", words, left_out)
        why = run.decision.why if run.record.layout.path in given_up else _failure(run)
        if why is not None:
            event = {"event": "failed", **common, "run": path, "why": why}
            _once_a_submission(told, run, words, event)
        if all(known.runs[other].state in ("ended", "complete") for other in _members(known, group)):
            event = {"event": "ended", **common, **_sum(known, group)}
            _once_a_submission(told, run, words, event)


def send(root: Path, told: Told) -> None:
    """Empty the outbox, message by message; each is remembered as soon as it is out."""
    for key, (words, event) in list(told.outbox.items()):
        problem = notify.send(words, event)
        if problem is not None:
            print(f"recovery.notify: {problem}", file=sys.stderr)
            if time.time() - event["time"] < _PATIENCE_S:
                continue
        del told.outbox[key]
        told.notified = {old: at for old, at in told.notified.items() if not _aged(at)}
        told.notified[key] = event["time"]
        save(root, told)


def _aged(when: float) -> bool:
    """Whether it is so old that nobody remembers having told of it, and so is no news."""
    return time.time() - when >= _FORGET_S


def _failure(run: Seen) -> str | None:
    """Why a person is needed."""
    final = run.record.facts.final
    return final if final is not None and final not in _SILENT and not run.record.facts.completed else None


def _group(path: str) -> str:
    """The sweep, or the run if it is not in one."""
    return path.rpartition("/")[0] or path


def _members(known: Census, group: str) -> list[str]:
    return [path for path in known.runs if path == group or path.startswith(f"{group}/")]


def _sum(known: Census, group: str) -> dict[str, int]:
    states = [known.runs[path].state for path in _members(known, group)]
    return {"runs": len(states), "completed": states.count("complete")}


def _once_a_submission(told: Told, run: Seen, words: Sequence[str], event: dict[str, Any]) -> None:
    """One message for all arrays of a sweep; what was told before the user's last submission is told again."""
    key, (array, submitted_at) = f"{event['event']} {event['name']}", _submission(run)
    earlier = f"{key} {array}"  # as previous versions kept it
    if earlier not in told.notified and told.notified.get(key, 0.0) <= submitted_at:
        told.outbox.setdefault(key, (list(words), event))


def _submission(run: Seen) -> tuple[str, float]:
    """The user's last: its array, and when it was. What had to wait for room (launch.backlog) is sent later."""
    array, at, waited = "", 0.0, False
    for said in run.record.events:
        if said.event in ("submitted", WAITING):
            array, at = str(said.facts.get("job", "")).partition("_")[0], at if waited else said.time
            waited = said.event == WAITING
    return array, at


def _once(told: Told, key: str, words: Sequence[str], event: dict[str, Any]) -> None:
    if key not in told.notified:
        told.outbox.setdefault(key, (list(words), event))
