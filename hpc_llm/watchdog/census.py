"""Which runs lie below a root, and which of them a pass has to look at: a cache between passes.

A pass reads one file and lists the root. A complete run is never read again; one that waits or runs
costs at most a look at its heartbeat; the others are read when their job changes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpc_llm.recovery import outside
from hpc_llm.recovery.slurm_answers import SlurmQueue
from hpc_llm.runs.below import folders_in, runs_of_sweep
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.storage.files import write_atomic

VERSION = 3
# For so long after a pass squeue still says what became of any job: below MinJobAge, 300 s.
TRUSTED_S = 240.0
# For so long after its start a job may have no attempt yet; clocks differ, too.
_SETTLED_S = 120.0
# A folder that changed so lately may change again within the tick of its time stamp.
_MTIME_S = 10.0

# States of a run at the last pass.
NEW = "new"  # not looked at since something happened to it
OPEN = "open"
ENDED = "ended"  # nothing follows, unless its job is queued again
COMPLETE = "complete"


@dataclass
class CachedRun:
    """A run at the last pass."""

    state: str = NEW
    address: str | None = None
    successor: str | None = None
    kind: str = ""  # of its job, see outside.glance
    again_at: float = 0.0  # not looked at before this time
    silent_since: float = 0.0  # see outside.Silence
    silent_seen_at: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it had ended."""
        return self.state in (ENDED, COMPLETE)

    @property
    def silence(self) -> outside.Silence:
        """Of its supervisor, as the last pass that looked saw it."""
        return outside.Silence(self.silent_since, self.silent_seen_at)


@dataclass
class RunCache:
    """All runs of a root by their path in it, as the last pass knew them."""

    time: float = 0.0  # of the last pass
    runs: dict[str, CachedRun] = field(default_factory=dict)
    # of sweeps: their modification time when they were listed
    folders: dict[str, float] = field(default_factory=dict)
    halving: set[str] = field(default_factory=set)  # sweeps whose runs are judged at rungs
    evidence: int = 0  # node_evidence.volume when nodes were excluded from waiting jobs
    # waiting runs whose jobs may start on bad nodes, for want of others
    given_back: set[str] = field(default_factory=set)
    starved_at: float = 0.0  # when jobs that lack nodes were looked at, see one_pass
    text: str = field(default="", compare=False)  # as it was read

    def runs_of(self, group: str) -> list[str]:
        """Paths of a sweep's runs, or of a run that is in none."""
        paths = []
        for path in self.runs:
            if path == group or path.rpartition("/")[0] == group:
                paths.append(path)
        return paths

    def are_over(self, paths: Iterable[str]) -> bool:
        """Whether all of these runs have ended."""
        return all(self.runs[path].over for path in paths)


def load(root: Path) -> RunCache:
    """As the last pass left it; empty where there was none, or none that can be read."""
    here = RootLayout(root)
    try:
        text = here.census.read_text()
        plain = json.loads(text)
        if plain["version"] != VERSION:
            return RunCache()
        return RunCache(
            time=here.last_pass.stat().st_mtime,
            runs={path: CachedRun(*values) for path, values in plain["runs"].items()},
            folders=plain["folders"],
            halving=set(plain["halving"]),
            evidence=plain["evidence"],
            given_back=set(plain["given_back"]),
            starved_at=plain["starved_at"],
            text=text,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return RunCache()


def save(root: Path, cache: RunCache) -> None:
    """For the next pass, where anything changed."""
    plain = {
        "version": VERSION,
        "folders": cache.folders,
        "evidence": cache.evidence,
        "halving": sorted(cache.halving),
        "given_back": sorted(cache.given_back),
        "starved_at": cache.starved_at,
        "runs": {path: list(vars(run).values()) for path, run in cache.runs.items()},
    }
    text = json.dumps(plain, separators=(",", ":"))
    if text != cache.text:
        write_atomic(RootLayout(root).census, text)
        cache.text = text


def discover(root: Path, cache: RunCache) -> None:
    """Add the runs that are new below `root`, and forget those that are gone."""
    names = folders_in(root)
    if names is None:  # a run itself
        cache.runs = {".": cache.runs.get(".", CachedRun())}
        return
    present = set(names)
    for path in list(cache.runs):
        if path.partition("/")[0] not in present:
            del cache.runs[path]
    for name in set(cache.folders) - present:
        del cache.folders[name]
    for name in names:
        if name not in cache.runs:
            with contextlib.suppress(OSError):
                _look_into(root, name, cache)


def _look_into(root: Path, name: str, cache: RunCache) -> None:
    """Add a run, or the runs of a sweep."""
    looked_at = time.time()
    changed = (root / name).stat().st_mtime
    if cache.folders.get(name) == changed:
        return
    inside = folders_in(root / name)
    if inside is None:
        cache.runs[name] = CachedRun()
        return
    present = set(inside)
    known = set()
    for path in list(cache.runs):
        sweep, _, run = path.rpartition("/")
        if sweep == name and run in present:
            known.add(run)
        elif sweep == name:
            del cache.runs[path]
    for path in runs_of_sweep(root, name, sorted(present - known)):
        cache.runs[path] = CachedRun()
    # Only now: where a run could not be read, the folder is looked into again.
    cache.folders[name] = changed if looked_at - changed > _MTIME_S else 0.0


def runs_to_read(root: Path, cache: RunCache, queue: SlurmQueue, now: float) -> Iterator[str]:
    """Paths of the runs that have to be looked at; the job's kind is noted for the others."""
    trusted = now - cache.time < TRUSTED_S
    claimed = _runs_of_unknown_jobs(cache, queue)
    for path, run in cache.runs.items():
        if run.state == COMPLETE and path not in claimed:
            continue
        job = _live_job(run, queue)
        if path in claimed or run.state == NEW or (job is not None and _is_unlike(job, path)):
            yield path
        elif run.state == ENDED:
            if job is not None or not trusted:
                yield path
        elif run.address is None:  # on the machine where it was typed
            if not trusted:
                yield path
        elif _has_changed(run, job, now, partial(_heartbeat_at, root, path)) or _began_lately(
            job, cache.time
        ):
            yield path


def _live_job(run: CachedRun, queue: SlurmQueue) -> QueuedJob | None:
    for address in (run.address, run.successor):
        job = queue.job(address)
        if job is not None and job.live:
            return job
    return None


def _is_unlike(job: QueuedJob, path: str) -> bool:
    """Whether the job under a run's number may be another's: only a look at the run can tell."""
    sweep, _, name = path.rpartition("/")
    if sweep and job.work_dir.endswith(f"/{sweep}"):
        return False
    return not job.work_dir.endswith(f"/{name}/code")


def _has_changed(
    run: CachedRun, job: QueuedJob | None, now: float, heartbeat_at: Callable[[], float]
) -> bool:
    """Whether there may be something to do; notes the kind of the job."""
    before = run.kind
    run.kind = outside.glance(job)
    if is_waiting(run.kind):
        return before != run.kind
    if run.kind == "running":
        began_lately = False
        if job is not None and job.start_time is not None:
            began_lately = now - job.start_time < outside.ORPHAN_AFTER_S
        return not began_lately and now - heartbeat_at() > outside.ORPHAN_AFTER_S
    return now >= run.again_at


def is_waiting(kind: str) -> bool:
    """Whether a job of this kind waits, and nothing is to be done about it."""
    return kind == "pending" or kind.startswith(outside.STUCK)


def _began_lately(job: QueuedJob | None, last_pass: float) -> bool:
    """Whether a job runs that Slurm started shortly before the last pass, or after it."""
    if job is None or not job.running or job.start_time is None:
        return False
    return job.start_time > last_pass - _SETTLED_S


def _heartbeat_at(root: Path, path: str) -> float:
    try:
        return RunLayout(root / path).heartbeat.stat().st_mtime
    except OSError:
        return 0.0


def _runs_of_unknown_jobs(cache: RunCache, queue: SlurmQueue) -> set[str]:
    """Runs that queued jobs may belong to that the cache does not know, by their folders alone."""
    known: set[str | None] = set()
    for run in cache.runs.values():
        known.update((run.address, run.successor))
    strangers = set()
    for job in queue.jobs:
        if job.address not in known:
            strangers.add((job.work_dir.rstrip("/"), job.live))
    if not strangers:
        return set()
    paths = _paths_by_folder(cache)
    claimed: set[str] = set()
    for folder, live in strangers:
        parent, _, last = folder.rpartition("/")
        key = parent.rpartition("/")[2] if last == "code" else f"{last}/"
        for path in paths.get(key, []):
            # A job that is over already may have been the first of a run that waited for room.
            run = cache.runs[path]
            # One that was complete may have been submitted again, to train further.
            if live or (run.address is None and run.state != COMPLETE):
                claimed.add(path)
    return claimed


def _paths_by_folder(cache: RunCache) -> dict[str, list[str]]:
    """Runs by their own name and by `SWEEP/`."""
    paths: dict[str, list[str]] = {}
    for path in cache.runs:
        sweep, _, name = path.rpartition("/")
        paths.setdefault(name, []).append(path)
        paths.setdefault(f"{sweep}/", []).append(path)
    return paths
