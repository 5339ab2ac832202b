"""One pass over all runs below a root: read their ledgers, query Slurm twice, act, and record every
act.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from hpc_llm.recovery import node_evidence, outside
from hpc_llm.recovery.carry_out import carry_out
from hpc_llm.recovery.exclusion import NodeExclusions, leave_out_of_waiting
from hpc_llm.recovery.look import Seen, SlurmQueue, decide_all, readable
from hpc_llm.recovery.policy import Action
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.locks import held_by_us
from hpc_llm.watchdog import census, notifications
from hpc_llm.watchdog.census import CachedRun, RunCache
from hpc_llm.watchdog.halving import _halve, _halved_sweep

_MANY_STARVED = 200
_STARVED_AGAIN_S = 600.0  # above 200 starved jobs, check them only every 600 s
_UNKNOWN_AGAIN_S = (
    600.0  # between two checks of a run whose job is unknown, or whose submission Slurm refused
)


def pass_over(root: Path) -> list[Seen]:
    """Look at what has changed, act, and notify; return what was done."""
    now = time.time()
    queue = SlurmQueue()
    done = list[Seen]()
    if queue.asked:
        known = census.load(root)
        census.discover(root, known)
        _halve(root, known)
        paths = list(census.runs_to_read(root, known, queue, now))
        records = dict(readable(root, paths))
        known.halving |= {
            sweep for path, run in records.items() if (sweep := _halved_sweep(path, run))
        }
        silences = {run.layout.path: known.runs[path].silence for path, run in records.items()}
        seen = dict(zip(records, decide_all(records.values(), queue, now, silences), strict=True))
        done, refused = carry_out(root, list(seen.values()), queue)
        for path, run in seen.items():
            known.runs[path] = _entry(
                run, known.runs[path], now, acted=run in done, refused=run in refused
            )
        _exclude_from_pending(root, known, queue, set(records), now)
        news = notifications.load_told(root)
        notifications.note_news(root, known, news, seen, done)
        notifications.save_told(
            root, news
        )  # before the census, by which nobody looks at what has ended again
        census.save(root, known)
        notifications.send_outbox(root, news)
    write_atomic(
        RootLayout(root).last_pass,
        json.dumps({"time": now, "host": os.uname().nodename, "pid": os.getpid()}) + "\n",
    )
    return done


def only_watchdog(root: Path) -> contextlib.AbstractContextManager[bool]:
    """Whether no other pass over `root` is in progress; two watchdogs take turns."""
    return held_by_us(RootLayout(root).watch_lock)


def _exclude_from_pending(
    root: Path, known: RunCache, queue: SlurmQueue, looked_at: set[str], now: float
) -> None:
    """Keep waiting jobs off bad nodes, whichever came first, the job or the evidence, unless they
    could never start.

    looked_at: runs about which this pass has learnt something new.
    """
    evidence = node_evidence.volume(root)
    waiting = [
        path
        for path, entry in known.runs.items()
        if entry.state == "open" and entry.kind == "pending"
    ]
    starved = {
        path
        for path in waiting
        if evidence and outside.starved(queue.job(known.runs[path].address))
    }
    known.given_back &= set(waiting)
    if evidence == known.evidence:
        if len(starved) > _MANY_STARVED and now - known.starved_at < _STARVED_AGAIN_S:
            starved = set()  # a maintenance may leave a whole sweep without nodes
        new = looked_at & set(waiting) if evidence else set[str]()
        waiting = sorted(starved | known.given_back | new)
        known.starved_at = now if starved else known.starved_at
    records = {path: (run, path in starved) for path, run in readable(root, waiting)}
    told, answered = leave_out_of_waiting(NodeExclusions(root), records)
    for path, found in told.items():
        known.given_back -= {path}
        known.given_back |= {path} if found.back and found.too_few else set()
    if evidence != known.evidence:
        for path in records:
            known.runs[path].state = "new"  # its ledger may tell of nodes now
    known.evidence = evidence if answered else -1


def _entry(run: Seen, before: CachedRun, now: float, *, acted: bool, refused: bool) -> CachedRun:
    """What the next pass has to know about a run that this one has looked at."""
    record = run.record.facts
    job = run.job
    if acted and run.decision.action is not Action.NOTHING:
        return CachedRun("new", record.address, record.successor)
    live = [one for one in (job.queued, job.successor) if one is not None and one.live]
    if record.completed or record.final is not None:
        return CachedRun(
            "ended" if live or not record.completed else "complete",
            record.address,
            record.successor,
        )
    kind = outside.glance(live[0] if live else None)
    unknown = refused or (kind == "gone" and run.decision.action is Action.NOTHING)
    settled = now - record.submitted_at > outside.FORGOTTEN_AFTER_S
    again_at = (
        now + _UNKNOWN_AGAIN_S
        if unknown and (settled or refused) and record.sent_at is None
        else 0.0
    )
    # Not `now`: reading this far may have taken as long as the file system stood still.
    silence = outside.silence(record, job, time.time(), before.silence)
    return CachedRun("open", record.address, record.successor, kind, again_at, *silence)
