"""What can be refused before submission by looking at this machine's files."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import shutil
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import identity
from hpc_llm.runs.layout import CODE_FOLDER, RunLayout
from hpc_llm.runs.planned import PlannedRun

_PROBE_BYTES = 1 << 20


def problems(config: RunConfig) -> list[str]:
    """Mistakes about where the run is to be stored: root, group, name, quota."""
    return place_problems(config) or name_problems(config, identity.layout_for(config))


def place_problems(config: RunConfig) -> list[str]:
    """What is wrong with root, group or quota: the same for all runs of a sweep.

    A dry run writes no probe file.
    """
    root = identity.root_of(config)
    problems = _root_problems(root, config.run.group)
    if not problems and not config.dry_run:
        problems = _probe_problems(root)
    if config.run.group is not None:
        problems = problems + group_problems(config.run.group)
        problems += _closed_to_group(root, config.run.group)
    return problems


def name_problems(config: RunConfig, layout: RunLayout) -> list[str]:
    """Whether something else is at `layout`, where the run is to be stored."""
    folder = RunLayout(layout.path.parent)
    if config.run.sweep is not None and folder.config.exists():
        return [
            f"run.sweep={folder.name}: {folder.path} is a run, not a sweep; choose another run.name"
        ]
    if not layout.path.exists():
        return []
    if not layout.config.exists():
        return [
            (
                f"run.name={layout.name}: {layout.path} exists and is not a run of hpc_llm; choose "
                "another run.name"
            )
        ]
    from hpc_llm.runs import freeze  # a run that is new, and a dry run, compare themselves to none

    changed = freeze.differences(config, layout)
    if not changed:
        return []
    return [freeze.conflict(layout, changed)]


def unknown_homes(config: RunConfig) -> list[str]:
    """Paths below the home of a user that does not exist, for which Path.expanduser raises."""
    run = config.run
    data = config.data
    paths = {
        "run.root": run.root,
        "data.source": data.source,
        "data.out": data.out,
        "data.tokenizer": data.tokenizer,
    }
    paths |= {f"data.sources.{name}.path": source.path for name, source in data.sources.items()}
    problems = []
    for key, path in paths.items():
        try:
            Path(path or "").expanduser()
        except RuntimeError:
            user = str(path)[1:].partition("/")[0]
            problems.append(f"{key}={path}: there is no user {user}; give another path")
    return problems


def python_problems(config: RunConfig) -> list[str]:
    """Whether the ranks of a run on this machine have an interpreter.

    They start in the folder of the code, so a path must be absolute.
    """
    python = config.cluster.python
    path = config.cluster.exports.get("PATH")
    if python is None or config.cluster.launcher != "local":
        return []
    if shutil.which(python, path=path) and (os.sep not in python or Path(python).is_absolute()):
        return []
    return [
        (
            f"cluster.python={python}: a program on PATH, or the whole path of one, is expected; "
            "null is this Python"
        )
    ]


def room_problems(
    runs: Sequence[PlannedRun], saved: Callable[[RunLayout], Collection[int]]
) -> list[str]:
    """Too little free space for the checkpoints that the runs keep and the one that each writes.

    saved: the steps of the checkpoints that a run has already.
    """
    needed: dict[str, int] = {}
    for run in runs:
        root = run.config.run.root
        num_checkpoints = run.config.checkpoint.keep + 1 + _permanent(run, saved)
        needed[root] = needed.get(root, 0) + num_checkpoints * run.plan.checkpoint_bytes
    contents = _checkpoints_of(runs, saved)
    problems = []
    for root, size in needed.items():
        state = os.statvfs(_existing(Path(root).expanduser().absolute()))
        free = state.f_bavail * state.f_frsize
        if free < size:
            problems.append(
                f"run.root={root}: {free / 2**30:.1f} GiB free, {size / 2**30:.1f} GiB needed for "
                f"{contents}; choose another run.root or free space"
            )
    return problems


def _checkpoints_of(
    runs: Sequence[PlannedRun], saved: Callable[[RunLayout], Collection[int]]
) -> str:
    """What the space is needed for, in words."""
    if len(runs) > 1:
        return f"the checkpoints of {len(runs)} runs and those being written"
    kept = f"checkpoint.keep={runs[0].config.checkpoint.keep} checkpoints"
    permanent = _permanent(runs[0], saved)
    if permanent:
        kept += f", {permanent} of checkpoint.permanent_every"
    return f"{kept} and the one being written"


def _permanent(run: PlannedRun, saved: Callable[[RunLayout], Collection[int]]) -> int:
    """How many checkpoints are yet to be written that stay for good."""
    every = run.plan.permanent_every_steps
    if not every:
        return 0
    written = sum(step % every == 0 for step in saved(run.layout))
    return max(0, run.plan.steps // every - written)


def _root_problems(root: Path, group: str | None) -> list[str]:
    existing = _existing(root)
    if existing == root and not root.is_dir():
        return [f"run.root={root}: a folder is expected, but this is a file"]
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [
            (
                f"run.root={root}: you cannot write to {existing}; choose a folder of yours with "
                "run.root=…"
            )
        ]
    if existing == root and (problem := _writable_by_others(root, group)):
        return [problem]
    return []


def _writable_by_others(root: Path, group: str | None) -> str | None:
    """Why runs in `root` could be changed by others; None if they could not.

    group: run.group, whose members may write to a root of theirs: they make runs of their own in
    it, and nobody obeys another one's.
    """
    state = root.stat()
    if state.st_mode & stat.S_IWOTH:
        return (
            f"run.root={root}: is world-writable, so anybody could change your runs; "
            f"chmod o-w {root}, or choose another run.root"
        )
    if not state.st_mode & stat.S_IWGRP or _is_group(group, state.st_gid):
        return None
    return (
        f"run.root={root}: its group can write to it, so others could change your runs; "
        f"chmod g-w {root}, or name the group with run.group if its members are to run here too"
    )


def _is_group(name: str | None, number: int) -> bool:
    try:
        return name is not None and grp.getgrnam(name).gr_gid == number
    except KeyError:
        return False


def _probe_problems(root: Path) -> list[str]:
    probe = _existing(root) / f".hpc_llm-probe-{os.getpid()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        return [
            f"run.root={root}: nothing can be written there ({error.strerror}); "
            "free space or quota, or choose another run.root"
        ]
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        why = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "no space or quota is left"
        return [
            f"run.root={root}: {why} (writing 1 MiB failed); free some space, or choose another "
            "run.root"
        ]
    finally:
        probe.unlink(missing_ok=True)
    return []


def group_problems(group: str | None) -> list[str]:
    """Whether run.group is one of this user's.

    By name, one at a time: directory services (LDAP through sssd) list no groups.
    """
    if group is None:
        return []
    mine = []
    for number in sorted({*os.getgroups(), os.getgid()}):
        if _is_group(group, number):
            return []
        with contextlib.suppress(KeyError):
            mine.append(grp.getgrgid(number).gr_name)
    return [f"run.group={group}: is not one of your groups; allowed: {', '.join(sorted(mine))}"]


def _closed_to_group(root: Path, group: str) -> list[str]:
    """Whether `root` is a private folder of other things, which no run may open to others."""
    if not root.is_dir() or root.stat().st_mode & 0o077 or (root / CODE_FOLDER).exists():
        return []
    if not any(root.iterdir()):
        return []
    return [
        f"run.group={group}: its members cannot look into run.root={root}; chgrp {group} {root} && "
        f"chmod 2750 {root}, or choose another run.root"
    ]


def _existing(path: Path) -> Path:
    """The nearest existing folder at or above `path`, as far as this user may see."""
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110 – it never raises
