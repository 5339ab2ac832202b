"""One pass over all runs below a root: read their ledgers, ask Slurm twice, act, and record it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

from hpc_llm.recovery import exclusion, node_evidence, outside
from hpc_llm.recovery.carry_out import carry_out
from hpc_llm.recovery.exclusion import NodeExclusions
from hpc_llm.recovery.look import Seen, decide, in_other_clusters, read_each
from hpc_llm.recovery.policy import Action
from hpc_llm.recovery.slurm_answers import SlurmQueue
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.locks import held_by_us
from hpc_llm.watchdog import census, halving, notifications, owners
from hpc_llm.watchdog.census import CachedRun, RunCache

MANY_STARVED = 200
STARVED_AGAIN_S = 600.0  # above so many jobs that lack nodes, they are looked at this rarely
# Between two looks at a run whose job is unknown, or whose submission Slurm refused.
_UNKNOWN_AGAIN_S = 600.0


def make_pass(root: Path) -> list[Seen]:
    """Look at what has changed, act, and notify; what was done."""
    now = time.time()
    queue = SlurmQueue()
    done: list[Seen] = []
    if queue.asked:
        done = _act(root, queue, now)
    alive = {"time": now, "host": os.uname().nodename, "pid": os.getpid()}
    write_atomic(RootLayout(root).last_pass, json.dumps(alive) + "\n")
    return done


def only_watchdog(root: Path) -> contextlib.AbstractContextManager[bool]:
    """Whether no other pass over `root` is in progress; two watchdogs take turns."""
    return held_by_us(RootLayout(root).watch_lock)


def _act(root: Path, queue: SlurmQueue, now: float) -> list[Seen]:
    cache = census.load(root)
    census.discover(root, cache)
    halving.record_rungs(root, cache)
    read = dict(read_each(root, list(census.runs_to_read(root, cache, queue, now))))
    records = owners.own(read)
    for path in read.keys() - records.keys():
        cache.runs[path] = CachedRun()  # looked at anew: its owner may mend it
    for path, record in records.items():
        if sweep := halving.halved_sweep(path, record):
            cache.halving.add(sweep)
    silences = {record.layout.path: cache.runs[path].silence for path, record in records.items()}
    decided = decide(list(records.values()), queue, now, silences)
    for line in in_other_clusters(decided):
        print(line, file=sys.stderr)
    all_seen = dict(zip(records, decided, strict=True))
    done, refused = carry_out(root, decided, queue)
    for path, seen in all_seen.items():
        before = cache.runs[path]
        acted = seen in done
        cache.runs[path] = _cached(seen, before, now, acted=acted, refused=seen in refused)
    _exclude_from_pending(root, cache, queue, records, now)
    news = notifications.load(root)
    notifications.collect(root, cache, news, all_seen, done)
    # Before the cache: once it is written, no pass looks at what has ended again.
    notifications.save(root, news)
    census.save(root, cache)
    notifications.send(root, news)
    return done


def _exclude_from_pending(
    root: Path, cache: RunCache, queue: SlurmQueue, looked_at: Collection[str], now: float
) -> None:
    """Keep waiting jobs off bad nodes, unless they could then never start.

    Whichever came first, the job or the evidence. looked_at: runs about which this pass has learnt
    something new.
    """
    evidence = node_evidence.volume(root)
    pending = _pending_runs(cache)
    starved: set[str] = set()
    new: set[str] = set()
    if evidence:
        starved = _starved_runs(cache, queue, pending)
        new = pending.intersection(looked_at)
    cache.given_back &= pending
    paths = sorted(pending)
    if evidence == cache.evidence:
        if len(starved) > MANY_STARVED and now - cache.starved_at < STARVED_AGAIN_S:
            starved = set()  # a maintenance may leave a whole sweep without nodes
        paths = sorted(starved | cache.given_back | new)
        if starved:
            cache.starved_at = now
    waiting = {}
    for path, record in owners.own(dict(read_each(root, paths))).items():
        if queue.job_of(record, record.summary.address) is not None:
            waiting[path] = (record, path in starved)
    changes, answered = exclusion.exclude_from_pending(NodeExclusions(root), waiting)
    for path, change in changes.items():
        cache.given_back.discard(path)
        if change.readmitted and change.too_few_others:
            cache.given_back.add(path)
    if evidence != cache.evidence:
        for path in waiting:
            cache.runs[path].state = census.NEW  # its ledger may name nodes now
    cache.evidence = evidence if answered else -1


def _pending_runs(cache: RunCache) -> set[str]:
    pending = set()
    for path, run in cache.runs.items():
        if run.state == census.OPEN and census.is_waiting(run.kind):
            pending.add(path)
    return pending


def _starved_runs(cache: RunCache, queue: SlurmQueue, pending: Collection[str]) -> set[str]:
    starved = set()
    for path in pending:
        if outside.starved(queue.job(cache.runs[path].address)):
            starved.add(path)
    return starved


def _cached(seen: Seen, before: CachedRun, now: float, *, acted: bool, refused: bool) -> CachedRun:
    """What the next pass has to know about a run that this one has looked at."""
    run = seen.record.summary
    job = seen.job
    if acted and seen.decision.action is not Action.NOTHING:
        return CachedRun(census.NEW, run.address, run.successor)
    live = job.live_job
    if run.over:
        state = census.COMPLETE if run.completed and live is None else census.ENDED
        return CachedRun(state, run.address, run.successor)
    kind = outside.glance(live)
    unknown = kind == "gone" and seen.decision.action is Action.NOTHING
    settled = now - run.submitted_at > outside.FORGOTTEN_AFTER_S
    again_at = 0.0
    if run.sent_at is None and (refused or (unknown and settled)):
        again_at = now + _UNKNOWN_AGAIN_S
    # Not `now`: reading this far may have taken as long as the file system stood still.
    silence = outside.silence(run, job, time.time(), before.silence)
    return CachedRun(census.OPEN, run.address, run.successor, kind, again_at, *silence)
