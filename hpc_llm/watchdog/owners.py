"""Which runs a watchdog may act for: those whose files nobody but this user can have written.

What it acts on is a script that it hands to sbatch, a command that it runs, the number of a job
that it cancels: whoever can write one of these files acts as the watchdog's user.
"""

from __future__ import annotations

import grp
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.recovery.run_record import RunRecord
from hpc_llm.runs import below, frozen_sections
from hpc_llm.storage import trust


def require_safe_root(root: Path) -> None:
    """InputError where anybody, or a group that no run of this user names, can write to `root`."""
    mode = root.stat().st_mode
    if mode & stat.S_IWOTH:
        raise InputError(
            f"{root}: is world-writable, so anybody could change your runs; chmod o-w {root}"
        )
    if mode & stat.S_IWGRP and root.stat().st_gid not in _groups_of_own_runs(root):
        raise InputError(
            f"{root}: its group can write to it, so others could change your runs; "
            f"chmod g-w {root}, or submit with run.group if its members are to run here too"
        )


def own(records: Mapping[str, RunRecord]) -> dict[str, RunRecord]:
    """Those of `records` that may be acted on; the others are named on stderr."""
    ours = {}
    for path, record in records.items():
        reason = trust.first_distrusted(_paths(record))
        if reason is None:
            ours[path] = record
        else:
            trust.passed_over(record.layout.path, reason)
    return ours


def _paths(record: RunRecord) -> Iterator[Path]:
    """Everything that says what is done, and the folders in which it could be replaced."""
    layout = record.layout
    if record.config.run.sweep is not None:
        yield layout.path.parent
    yield from (layout.path, layout.config, layout.plan, layout.script)
    yield from (layout.ledger, *layout.ledger.glob("*.jsonl"))
    yield from (layout.attempts, layout.code, layout.code.resolve().parent)


def _groups_of_own_runs(root: Path) -> set[int]:
    groups = set()
    for layout in below.find_runs(root):
        try:
            group = frozen_sections.read(layout).run.group
            if group is not None and trust.distrusted(layout.config) is None:
                groups.add(grp.getgrnam(group).gr_gid)
        except (OSError, ValueError, KeyError):
            continue
    return groups
