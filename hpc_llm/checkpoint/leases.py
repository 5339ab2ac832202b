"""Leases: a checkpoint that somebody reads is not pruned until the lease ends.

```
checkpoints/
  step-00001000/
  step-00001000.export.node7.4711.9f3b21c0.lease   a reader, its host and process
```
One small file a reader, with the time of its end inside, so leases hold across processes and hosts.
A reader that dies leaves its file, which counts until that time has passed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hpc_llm.storage.files import write_json

_ENDING = ".lease"


@dataclass(frozen=True)
class Terms:
    """What a lease's file says. until: in seconds since 1970, by the clock of its host."""

    holder: str
    host: str
    pid: int
    until: float


class Lease:
    """One reader's hold on one checkpoint; as a context manager it ends with the block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def release(self) -> None:
        """The checkpoint may be pruned as far as this reader is concerned."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def take(folder: Path, holder: str, seconds: float) -> Lease:
    """Hold the checkpoint in `folder` for `seconds`. To go on longer, take another.

    ValueError if `holder` is not made of letters, digits, - and _.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", holder) is None:
        raise ValueError(f"{holder}: a holder of a lease is named with letters, digits, - and _")
    terms = Terms(holder, os.uname().nodename, os.getpid(), time.time() + seconds)
    # A name that never comes again: what has ended can be removed without a look at it in between.
    name = f"{folder.name}.{holder}.{terms.host}.{terms.pid}.{secrets.token_hex(4)}{_ENDING}"
    path = folder.with_name(name)
    write_json(path, asdict(terms))
    return Lease(path)


def held(folder: Path) -> list[Terms]:
    """Leases of the checkpoint in `folder` that have not ended.

    Files of those that have ended are removed.
    """
    now = time.time()
    running = []
    for path in sorted(folder.parent.glob(f"{folder.name}.*{_ENDING}")):
        terms = _read(path)
        if terms is not None and terms.until > now:
            running.append(terms)
        else:
            _forget(path)
    return running


def sweep(checkpoints: Path) -> None:
    """Remove the files of all leases that have ended, also of checkpoints that are gone."""
    for name in {path.name.partition(".")[0] for path in checkpoints.glob(f"step-*{_ENDING}")}:
        held(checkpoints / name)


def _read(path: Path) -> Terms | None:
    """The terms in a lease's file; None if it is gone, or is no lease."""
    try:
        return Terms(**json.loads(path.read_text()))
    except FileNotFoundError:  # released a moment ago
        return None
    except OSError:  # somebody's, who may still read
        return Terms(path.name, "", 0, math.inf)
    except (ValueError, TypeError):
        return None


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
