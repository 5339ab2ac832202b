"""Notifications, once per event: the end of a run or sweep, the first of its runs that needs a
person, an excluded node.

A sweep gets one message, not one for each run. What could not be sent waits for the next pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import Seen
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import event_names
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.files import write_atomic
from hpc_llm.watchdog.census import RunCache

# The user knows already, or need not know.
_SILENT = (Cause.COMPLETED, event_names.CANCELLED, Cause.STOPPED, event_names.HALVED)
_DAY_S = 86400.0
_FORGET_S = 90 * _DAY_S
_PATIENCE_S = _DAY_S  # how long a failing command or webhook is retried


def note_news(
    root: Path, known: RunCache, told: Told, seen: Mapping[str, Seen], done: Sequence[Seen]
) -> None:
    """Put what is new into `told.outbox`."""
    given_up = {run.record.layout.path for run in done if run.decision.action is Action.STOP}
    for path, run in seen.items():
        words = run.record.config.recovery.notify
        last = max((event.time for event in run.record.story.events), default=0.0)
        if not words or (_aged(last) and run.record.layout.path not in given_up):
            continue
        group = _group(path)
        common = {"name": group, "root": str(root), "time": time.time()}
        for change in run.record.story.node_changes:
            if not change.excluded or _aged(change.time):
                continue
            day = int(change.time // _DAY_S)  # a node that several runs leave out is told of once
            for node in change.nodes:
                left_out = {
                    "event": "excluded",
                    **common,
                    "run": path,
                    "node": node,
                    "why": change.why,
                }
                _once(told, f"excluded {node} {day}", words, left_out)
        why = run.decision.why if run.record.layout.path in given_up else _failure(run)
        if why is not None:
            event = {"event": "failed", **common, "run": path, "why": why}
            _once_a_submission(told, run, words, event)
        if all(
            known.runs[other].state in ("ended", "complete") for other in _members(known, group)
        ):
            event = {"event": "ended", **common, **_sum(known, group)}
            _once_a_submission(told, run, words, event)


def send_outbox(root: Path, told: Told) -> None:
    """Empty the outbox, message by message; each is remembered as soon as it is out."""
    for key, (words, event) in list(told.outbox.items()):
        problem = deliver(words, event)
        if problem is not None:
            print(f"recovery.notify: {problem}", file=sys.stderr)
            if time.time() - event["time"] < _PATIENCE_S:
                continue
        del told.outbox[key]
        told.notified = {old: at for old, at in told.notified.items() if not _aged(at)}
        told.notified[key] = event["time"]
        save_told(root, told)


def _aged(when: float) -> bool:
    """Whether it is so old that nobody remembers having told of it, and so is no news."""
    return time.time() - when >= _FORGET_S


def _failure(run: Seen) -> str | None:
    """Why a person is needed."""
    final = run.record.facts.final
    return (
        final
        if final is not None and final not in _SILENT and not run.record.facts.completed
        else None
    )


def _group(path: str) -> str:
    """The sweep, or the run if it is not in one."""
    return path.rpartition("/")[0] or path


def _members(known: RunCache, group: str) -> list[str]:
    return [path for path in known.runs if path == group or path.startswith(f"{group}/")]


def _sum(known: RunCache, group: str) -> dict[str, int]:
    states = [known.runs[path].state for path in _members(known, group)]
    return {"runs": len(states), "completed": states.count("complete")}


def _once_a_submission(told: Told, run: Seen, words: Sequence[str], event: dict[str, Any]) -> None:
    """One message for all arrays of a sweep; what was told before the user's last submission is
    told again.
    """
    key = f"{event['event']} {event['name']}"
    (array, submitted_at) = _submission(run)
    earlier = f"{key} {array}"  # as previous versions kept it
    if earlier not in told.notified and told.notified.get(key, 0.0) <= submitted_at:
        told.outbox.setdefault(key, (list(words), event))


def _submission(run: Seen) -> tuple[str, float]:
    """The user's last: its array, and when it was. What had to wait for room (launch.backlog) is
    sent later.
    """
    array = ""
    at = 0.0
    waited = False
    for sent in run.record.story.sendings:
        if sent.name in (event_names.SUBMITTED, event_names.WAITING):
            array = (sent.job or "").partition("_")[0]
            at = at if waited else sent.time
            waited = sent.name == event_names.WAITING
    return array, at


def _once(told: Told, key: str, words: Sequence[str], event: dict[str, Any]) -> None:
    if key not in told.notified:
        told.outbox.setdefault(key, (list(words), event))


# -- Tell a user: a command of theirs, or a webhook, gets one JSON object per event.


TIMEOUT_S = 20.0


def deliver(notify: Sequence[str], event: dict[str, Any]) -> str | None:
    """Deliver `event`; return what went wrong, as a phrase, or None.

    `notify` is the words of a command, which gets the event on standard input, or one URL, or one
    `$VARIABLE` of this process's environment that holds a URL: webhook addresses are secrets, and
    secrets are never written to a file.
    """
    target = notify[0]
    if len(notify) == 1 and target.startswith("$"):
        target = os.environ.get(target[1:], "")
        if not target:
            return f"{notify[0]} is not set"
    text = json.dumps(event)
    if "://" in target:
        return _post(target, text)
    try:
        done = subprocess.run(
            notify, input=text.encode(), timeout=TIMEOUT_S, capture_output=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{notify[0]}: {error}"
    return f"{notify[0]} ended with {done.returncode}" if done.returncode else None


def _post(url: str, text: str) -> str | None:
    if not _allowed(url):
        return "only https:// addresses are allowed (http:// only for 127.0.0.1)"
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return None
    except (OSError, urllib.error.URLError, ValueError) as error:
        return f"{urlsplit(url).hostname}: {error}"  # not the address: it may hold a secret


def _allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1")


# -- What a user was told of, and what they are still to be told: no cache, since nothing else knows
# it.


@dataclass
class Told:
    """notified: key of an event → when; outbox: key → words of recovery.notify and the event."""

    notified: dict[str, float] = field(default_factory=dict)
    outbox: dict[str, tuple[list[str], dict[str, Any]]] = field(default_factory=dict)
    text: str = field(default="", compare=False)  # as it was read


def load_told(root: Path) -> Told:
    """As the last pass left it. OSError where it is there and cannot be read: it must not be taken
    for empty.
    """
    here = RootLayout(root)
    for path in (here.told, here.census):  # watchdogs of earlier versions kept it in their census
        try:
            text = path.read_text()
            plain = json.loads(text)
            return Told(dict(plain["notified"]), dict(plain["outbox"]), text)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            if path == here.told:
                print(
                    f"{path}: damaged ({error!r}); its user is told again of what has ended",
                    file=sys.stderr,
                )
    return Told()


def save_told(root: Path, told: Told) -> None:
    """For the next pass, where anything changed."""
    text = json.dumps({"notified": told.notified, "outbox": told.outbox}, separators=(",", ":"))
    if text != told.text:
        write_atomic(RootLayout(root).told, text)
        told.text = text
