"""Notifications, each sent once: a run or sweep has ended, needs a person, or a node is excluded.

A sweep gets one message, not one for each run. What could not be sent waits for the next pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.recovery import outside
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.look import Seen
from hpc_llm.recovery.observations import Canceller
from hpc_llm.recovery.policy import AGAIN, Action
from hpc_llm.runs import event_names
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage import trust
from hpc_llm.storage.files import write_atomic
from hpc_llm.watchdog.census import COMPLETE, RunCache
from hpc_llm.watchdog.delivery import deliver

# The user knows already, or need not know.
_SILENT = (Cause.COMPLETED, event_names.CANCELLED, Cause.STOPPED, event_names.HALVED)
_DAY_S = 86400.0
_FORGET_S = 90 * _DAY_S
_PATIENCE_S = _DAY_S  # how long a failing command or webhook is retried


@dataclass
class Notifications:
    """What was sent, and what is to be sent: no cache, since nothing else knows it."""

    notified: dict[str, float] = field(default_factory=dict)  # key of an event → when it was sent
    # key → recovery.notify and the event
    outbox: dict[str, tuple[list[str], dict[str, Any]]] = field(default_factory=dict)
    text: str = field(default="", compare=False)  # as it was read

    def add(self, key: str, notify: Sequence[str], event: dict[str, Any]) -> None:
        """Send the event unless one with this key was sent, or is to be."""
        if key not in self.notified:
            self.outbox.setdefault(key, (list(notify), event))

    def add_for_submission(self, seen: Seen, notify: Sequence[str], event: dict[str, Any]) -> None:
        """Send the event unless one of this kind was sent since the user's last submission.

        That is one message for all arrays of a sweep.
        """
        key = f"{event['event']} {event['name']}"
        array, submitted_at = _last_submission(seen)
        key_of_earlier_versions = f"{key} {array}"
        if key_of_earlier_versions in self.notified:
            return
        if self.notified.get(key, 0.0) <= submitted_at:
            self.outbox.setdefault(key, (list(notify), event))


def load(root: Path) -> Notifications:
    """As the last pass left them.

    OSError where the file is there and cannot be read: it must not be taken for empty.
    """
    here = RootLayout(root)
    for path in (here.told, here.census):  # watchdogs of earlier versions kept it in their census
        if reason := trust.first_distrusted([path]):
            trust.passed_over(path, reason)
            continue
        try:
            text = path.read_text()
            plain = json.loads(text)
            return Notifications(dict(plain["notified"]), dict(plain["outbox"]), text)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            if path == here.told:
                message = f"damaged ({error!r}); its user is told again of what has ended"
                print(f"{path}: {message}", file=sys.stderr)
    return Notifications()


def save(root: Path, news: Notifications) -> None:
    """For the next pass, where anything changed."""
    plain = {"notified": news.notified, "outbox": news.outbox}
    text = json.dumps(plain, separators=(",", ":"))
    if text != news.text:
        write_atomic(RootLayout(root).told, text)
        news.text = text


def collect(
    root: Path,
    cache: RunCache,
    news: Notifications,
    all_seen: Mapping[str, Seen],
    done: Sequence[Seen],
) -> None:
    """Put what is new into the outbox. all_seen: by path; done: decisions that were carried out.

    A run to which nothing has happened for long is no news, even if it is seen for the first time.
    """
    given_up = {seen.record.layout.path for seen in done if seen.decision.action is Action.STOP}
    for path, seen in all_seen.items():
        notify = seen.record.config.recovery.notify
        just_given_up = seen.record.layout.path in given_up
        last = max((event.time for event in seen.record.story.events), default=0.0)
        if not notify or (_is_old(last) and not just_given_up):
            continue
        group = _group(path)
        common = {"name": group, "root": str(root), "time": time.time()}
        _collect_exclusions(news, seen, {**common, "run": path})
        _collect_cares(news, seen, {**common, "run": path}, just_done=seen in done)
        why = seen.decision.why if just_given_up else _failure(seen)
        if why is not None:
            failed = {"event": "failed", **common, "run": path, "why": why}
            news.add_for_submission(seen, notify, failed)
        members = cache.runs_of(group)
        if cache.are_over(members):
            ended = {"event": "ended", **common, **_count(cache, members)}
            news.add_for_submission(seen, notify, ended)


def send(root: Path, news: Notifications) -> None:
    """Empty the outbox, message by message; each is remembered as soon as it is out."""
    for key, (notify, event) in list(news.outbox.items()):
        problem = deliver(notify, event)
        if problem is not None:
            print(f"recovery.notify: {problem}", file=sys.stderr)
            if time.time() - event["time"] < _PATIENCE_S:
                continue
        del news.outbox[key]
        news.notified = {old: at for old, at in news.notified.items() if not _is_old(at)}
        news.notified[key] = event["time"]
        save(root, news)


def _collect_cares(
    news: Notifications, seen: Seen, common: dict[str, Any], *, just_done: bool
) -> None:
    """Jobs that wait for what only a person does, and those that others have cancelled."""
    notify = seen.record.config.recovery.notify
    address = seen.record.summary.address
    array = (address or "").partition("_")[0]
    why = outside.needs_user(seen.record.summary, seen.job)
    if why is not None:
        reason = why.partition(":")[0]
        event = {"event": "waits", **common, "why": why}
        news.add(f"waits {common['name']} {array} {reason}", notify, event)
    decision = seen.decision
    cancelled_by_others = decision.cause is Cause.ADMIN_CANCEL and decision.action in AGAIN
    cancelled_by_nobody_knows = (
        decision.action is Action.MARK_CANCELLED and seen.job.canceller is Canceller.NOT_TOLD
    )
    if just_done and (cancelled_by_others or cancelled_by_nobody_knows):
        event = {"event": "cancelled", **common, "why": decision.why}
        news.add(f"cancelled {common['name']} {array}", notify, event)


def _collect_exclusions(news: Notifications, seen: Seen, common: dict[str, Any]) -> None:
    for change in seen.record.story.node_changes:
        if not change.excluded or _is_old(change.time):
            continue
        day = int(change.time // _DAY_S)  # one message for a node that several runs exclude
        for node in change.nodes:
            event = {"event": "excluded", **common, "node": node, "why": change.why}
            news.add(f"excluded {node} {day}", seen.record.config.recovery.notify, event)


def _is_old(when: float) -> bool:
    """Whether it was so long ago that a notification of it may have been forgotten."""
    return time.time() - when >= _FORGET_S


def _failure(seen: Seen) -> str | None:
    """Why a person is needed."""
    final = seen.record.summary.final
    if final is None or final in _SILENT or seen.record.summary.completed:
        return None
    return final


def _group(path: str) -> str:
    """The sweep, or the run if it is not in one."""
    return path.rpartition("/")[0] or path


def _count(cache: RunCache, members: Sequence[str]) -> dict[str, int]:
    states = [cache.runs[path].state for path in members]
    return {"runs": len(states), "completed": states.count(COMPLETE)}


def _last_submission(seen: Seen) -> tuple[str, float]:
    """The array that the user submitted last, and when.

    What had to wait for room (submission.backlog) is sent later.
    """
    array = ""
    at = 0.0
    waited = False
    for sent in seen.record.story.sendings:
        if sent.name in (event_names.SUBMITTED, event_names.WAITING):
            array = (sent.job or "").partition("_")[0]
            at = at if waited else sent.time
            waited = sent.name == event_names.WAITING
    return array, at
