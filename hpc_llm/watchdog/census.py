"""Which runs lie below a root and which of them have to be looked at: a cache, so that a pass costs
little.

A pass reads one file and lists the root. A complete run is never read again; one that waits or runs
costs at most a look at its heartbeat; the others are read when their job changes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpc_llm.recovery import outside
from hpc_llm.recovery.look import SlurmQueue
from hpc_llm.runs.below import folders_in, runs_of_sweep
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import write_atomic

VERSION = 3
TRUSTED_S = 240.0  # below MinJobAge, 300 s: whatever became of a job meanwhile, squeue still says
_MTIME_S = (
    10.0  # a folder that changed so lately may change again within the tick of its time stamp
)


@dataclass
class CachedRun:
    """A run at the last pass."""

    state: str = (
        "new"  # new, open, ended (nothing follows unless its job is queued again), complete
    )
    address: str | None = None
    successor: str | None = None
    kind: str = ""  # of its job, see watch.glance
    again_at: float = 0.0  # not before this time
    silent_since: float = 0.0  # see watch.Silence
    silent_seen_at: float = 0.0

    @property
    def silence(self) -> outside.Silence:
        """Of its supervisor, as the last pass that looked saw it."""
        return outside.Silence(self.silent_since, self.silent_seen_at)


@dataclass
class RunCache:
    """All runs of a root by their path in it."""

    time: float = 0.0  # of the last pass
    runs: dict[str, CachedRun] = field(default_factory=dict)
    folders: dict[str, float] = field(
        default_factory=dict
    )  # of sweeps: modification time when they were listed
    halving: set[str] = field(default_factory=set)  # sweeps whose runs are judged at rungs
    evidence: int = 0  # nodes.volume of what waiting jobs have been spared
    given_back: set[str] = field(
        default_factory=set
    )  # waiting runs whose jobs may start on bad nodes, for want of others
    starved_at: float = 0.0  # when jobs that lack nodes were looked at, see loop
    text: str = field(default="", compare=False)  # as it was read


def load(root: Path) -> RunCache:
    """As the last pass left it; empty where there was none, or none that can be read."""
    here = RootLayout(root)
    try:
        text = here.census.read_text()
        plain = json.loads(text)
        if plain["version"] != VERSION:
            return RunCache()
        runs = {path: CachedRun(*values) for path, values in plain["runs"].items()}
        return RunCache(
            here.last_pass.stat().st_mtime,
            runs,
            plain["folders"],
            set(plain["halving"]),
            plain["evidence"],
            set(plain["given_back"]),
            plain["starved_at"],
            text,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return RunCache()


def save(root: Path, census: RunCache) -> None:
    """For the next pass, where anything changed."""
    runs = {path: list(vars(entry).values()) for path, entry in census.runs.items()}
    plain = {"version": VERSION, "folders": census.folders, "evidence": census.evidence}
    plain |= {"halving": sorted(census.halving), "given_back": sorted(census.given_back)}
    plain |= {"starved_at": census.starved_at, "runs": runs}
    text = json.dumps(plain, separators=(",", ":"))
    if text != census.text:
        write_atomic(RootLayout(root).census, text)
        census.text = text


def discover(root: Path, census: RunCache) -> None:
    """Add the runs that are new below `root`, and forget those that are gone."""
    names = folders_in(root)
    if names is None:  # a run itself
        census.runs = {".": census.runs.get(".", CachedRun())}
        return
    known = set(names)
    present = set(census.folders)
    for path in [path for path in census.runs if path.partition("/")[0] not in known]:
        del census.runs[path]
    for name in present - known:
        del census.folders[name]
    for name in names:
        if name not in census.runs:
            _look_into(root, name, census)


def _look_into(root: Path, name: str, census: RunCache) -> None:
    """A run, or the runs of a sweep."""
    with contextlib.suppress(OSError):
        changed = (root / name).stat().st_mtime
        if census.folders.get(name) == changed:
            return
        inside = folders_in(root / name)
        if inside is None:
            census.runs[name] = CachedRun()
            return
        census.folders[name] = changed if time.time() - changed > _MTIME_S else 0.0
        now = {f"{name}/{run}" for run in inside}
        for path in [
            path for path in census.runs if path.startswith(f"{name}/") and path not in now
        ]:
            del census.runs[path]
        unknown = [run for run in inside if f"{name}/{run}" not in census.runs]
        census.runs |= {path: CachedRun() for path in runs_of_sweep(root, name, unknown)}


def runs_to_read(root: Path, census: RunCache, queue: SlurmQueue, now: float) -> Iterator[str]:
    """Paths of the runs that have to be looked at; notes what is seen of the others."""
    trusted = now - census.time < TRUSTED_S
    claimed = _runs_of_unknown_jobs(census, queue)
    for path, entry in census.runs.items():
        jobs = (queue.job(entry.address), queue.job(entry.successor))
        job = next((one for one in jobs if one is not None and one.live), None)
        if path in claimed or entry.state == "new":
            yield path
        elif entry.state == "complete":
            continue
        elif entry.state == "ended":
            if job is not None or not trusted:
                yield path
        elif entry.address is None:  # on the machine where it was typed
            if not trusted:
                yield path
        elif _changed(
            entry, outside.glance(job), job.start_time if job else None, now, _heartbeat(root, path)
        ):
            yield path


def _changed(
    entry: CachedRun, kind: str, start: float | None, now: float, heartbeat_at: Callable[[], float]
) -> bool:
    before = entry.kind
    entry.kind = kind
    if kind == "pending":
        return before != "pending"
    if kind == "running":
        began_lately = start is not None and now - start < outside.ORPHAN_AFTER_S
        return not began_lately and now - heartbeat_at() > outside.ORPHAN_AFTER_S
    return now >= entry.again_at


def _heartbeat(root: Path, path: str) -> Callable[[], float]:
    def read() -> float:
        try:
            return RunLayout(root / path).heartbeat.stat().st_mtime
        except OSError:
            return 0.0

    return read


def _runs_of_unknown_jobs(census: RunCache, queue: SlurmQueue) -> set[str]:
    """Runs that a live job nobody knows here may belong to: by its working directory, without a
    look at the disk.
    """
    known = {
        address for entry in census.runs.values() for address in (entry.address, entry.successor)
    }
    strangers = [job for job in queue.jobs if job.address not in known]
    if not strangers:
        return set()
    names: dict[str, list[str]] = {}
    for path, entry in census.runs.items():
        if entry.state != "complete":
            sweep, _, name = path.rpartition("/")
            names.setdefault(name, []).append(path)
            names.setdefault(f"{sweep}/", []).append(path)
    found: set[str] = set()
    for folder, live in {(job.work_dir.rstrip("/"), job.live) for job in strangers}:
        parent, _, last = folder.rpartition("/")
        theirs = (
            names.get(parent.rpartition("/")[2], [])
            if last == "code"
            else names.get(f"{last}/", [])
        )
        # A job that is over already may have been the first of a run that waited for room.
        found.update(path for path in theirs if live or census.runs[path].address is None)
    return found
