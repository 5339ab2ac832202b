"""Deliver a notification: a command of the user's, or a webhook, gets one JSON object per event."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from hpc_llm.config.printable import printable

TIMEOUT_S = 20.0


def deliver(notify: Sequence[str], event: dict[str, Any]) -> str | None:
    """Deliver `event`; what went wrong, as a phrase, or None.

    `notify` is a command with its arguments, which gets the event on standard input, or one URL, or
    one `$VARIABLE` of this process's environment that holds a URL: webhook addresses are secrets,
    and secrets are never written to a file.
    """
    target = notify[0]
    if len(notify) == 1 and target.startswith("$"):
        target = os.environ.get(target[1:], "")
        if not target:
            return f"{notify[0]} is not set"
    text = json.dumps({key: _printable(value) for key, value in event.items()})
    if "://" in target:
        return _post(target, text)
    try:
        done = subprocess.run(
            notify, input=text.encode(), timeout=TIMEOUT_S, capture_output=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{notify[0]}: {error}"
    return f"{notify[0]} ended with {done.returncode}" if done.returncode else None


def _printable(value: Any) -> Any:
    """Texts of runs end on somebody's terminal, too."""
    return printable(value) if isinstance(value, str) else value


def _post(url: str, text: str) -> str | None:
    if not _is_allowed(url):
        return "only https:// addresses are allowed (http:// only for 127.0.0.1)"
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return None
    except (OSError, urllib.error.URLError, ValueError) as error:
        return f"{urlsplit(url).hostname}: {error}"  # not the address: it may hold a secret


def _is_allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1")
