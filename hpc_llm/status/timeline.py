"""The story of one run: its ledger as lines, oldest first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from hpc_llm.runs import event_names
from hpc_llm.runs.ledger import Event

# Shown by the line itself, or of no use to a person who asks what happened.
_HIDDEN = ("attempt", "words", "pid", "job_id", "array_task", "exit_codes")
_WIDTH = 150


def lines(events: Sequence[Event]) -> Iterator[str]:
    """A line per event; saves in a row are one line."""
    for (_, number, _), group in groupby(events, key=_kind):
        several = list(group)
        last = several[-1]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.time))
        attempt = "-" if number is None else f"attempt {number}"
        name = last.event
        if len(several) > 1:
            name += f" × {len(several)}"
        yield f"{when}  {attempt:<10}  {name}  {_facts(last.facts)}"[:_WIDTH].rstrip()


def _kind(event: Event) -> tuple[str, Any, float]:
    """Equal for events that share a line."""
    own = 0.0 if event.event == event_names.CHECKPOINTED else event.time
    return event.event, event.facts.get("attempt"), own


def _facts(facts: dict[str, Any]) -> str:
    shown = []
    for key, value in facts.items():
        if key not in _HIDDEN and value not in (None, [], ""):
            shown.append(f"{key}={_plain(value)}")
    return " ".join(shown)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return " ".join(str(value).split())
