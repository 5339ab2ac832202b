"""What a user was told of, and what they are still to be told: no cache, since nothing else knows it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.files import write_atomic


@dataclass
class Told:
    """notified: key of an event → when; outbox: key → words of recovery.notify and the event."""

    notified: dict[str, float] = field(default_factory=dict)
    outbox: dict[str, tuple[list[str], dict[str, Any]]] = field(default_factory=dict)
    text: str = field(default="", compare=False)  # as it was read


def load(root: Path) -> Told:
    """As the last pass left it. OSError where it is there and cannot be read: it must not be taken for empty."""
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
                print(f"{path}: damaged ({error!r}); its user is told again of what has ended", file=sys.stderr)
    return Told()


def save(root: Path, told: Told) -> None:
    """For the next pass, where anything changed."""
    text = json.dumps({"notified": told.notified, "outbox": told.outbox}, separators=(",", ":"))
    if text != told.text:
        write_atomic(RootLayout(root).told, text)
        told.text = text
