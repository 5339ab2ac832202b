"""One pass over all runs below a root: read their ledgers, query Slurm twice, act, and record every act."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hpc_llm.recovery import census, facts, nodes, telling, told, watch
from hpc_llm.recovery.acts import Seen, carry_out, leave_out_of_waiting, ledger_for
from hpc_llm.recovery.blame import Blame
from hpc_llm.recovery.census import Census, Entry
from hpc_llm.recovery.facts import Answers, Queue, Record
from hpc_llm.recovery.halving import Contender, judge
from hpc_llm.recovery.policy import Action
from hpc_llm.runs import lock
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import write_atomic

_PROMOTED = "promoted"  # the ledger's word for a run that has passed a rung
_MANY_STARVED, _STARVED_AGAIN_S = 200, 600.0  # above 200 starved jobs, check them only every 600 s
_UNKNOWN_AGAIN_S = 600.0  # between two checks of a run whose job is unknown, or whose submission Slurm refused


def one_pass(root: Path) -> list[Seen]:
    """Look at what has changed, act, and notify; return what was done."""
    now, queue, done = time.time(), Queue(), list[Seen]()
    if queue.asked:
        known = census.load(root)
        census.discover(root, known)
        _halve(root, known)
        paths = list(census.due(root, known, queue, now))
        records = dict(_readable(root, paths))
        known.halving |= {sweep for path, run in records.items() if (sweep := _halved_sweep(path, run))}
        silences = {run.layout.path: known.runs[path].silence for path, run in records.items()}
        seen = dict(zip(records, _decide(records.values(), queue, now, silences), strict=True))
        done, refused = carry_out(root, list(seen.values()), queue)
        for path, run in seen.items():
            known.runs[path] = _entry(run, known.runs[path], now, acted=run in done, refused=run in refused)
        _spare_the_waiting(root, known, queue, set(records), now)
        news = told.load(root)
        telling.note(root, known, news, seen, done)
        told.save(root, news)  # before the census, by which nobody looks at what has ended again
        census.save(root, known)
        telling.send(root, news)
    write_atomic(
        RootLayout(root).last_pass, json.dumps({"time": now, "host": os.uname().nodename, "pid": os.getpid()}) + "\n"
    )
    return done


def look(root: Path) -> list[Seen]:
    """Every run at or below `root` and what should be done about it; nothing is written."""
    return _decide(read_all(root), Queue(), time.time(), {})


def read_all(root: Path) -> list[Record]:
    """Every run at or below `root` that can be read; Slurm is not asked."""
    paths = [str(run.path.relative_to(root)) for run in census.find_runs(root)]
    return [record for _, record in _readable(root, paths)]


def only_watchdog(root: Path) -> contextlib.AbstractContextManager[bool]:
    """Whether no other pass over `root` is in progress; two watchdogs take turns."""
    return lock.taken(RootLayout(root).watch_lock)


def _readable(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Runs with their facts; one that cannot be read does not keep the others from being looked after."""
    for path in paths:
        layout = RunLayout(root / path)
        try:
            yield path, facts.read(layout)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{layout.path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def _spare_the_waiting(root: Path, known: Census, queue: Queue, looked_at: set[str], now: float) -> None:
    """Keep waiting jobs off bad nodes, whichever came first, the job or the evidence, unless they could never start.

    looked_at: runs about which this pass has learnt something new.
    """
    evidence = nodes.volume(root)
    waiting = [path for path, entry in known.runs.items() if entry.state == "open" and entry.kind == "pending"]
    starved = {path for path in waiting if evidence and watch.starved(queue.job(known.runs[path].address))}
    known.given_back &= set(waiting)
    if evidence == known.evidence:
        if len(starved) > _MANY_STARVED and now - known.starved_at < _STARVED_AGAIN_S:
            starved = set()  # a maintenance may leave a whole sweep without nodes
        new = looked_at & set(waiting) if evidence else set[str]()
        waiting = sorted(starved | known.given_back | new)
        known.starved_at = now if starved else known.starved_at
    records = {path: (run, path in starved) for path, run in _readable(root, waiting)}
    told, answered = leave_out_of_waiting(Blame(root), records)
    for path, found in told.items():
        known.given_back -= {path}
        known.given_back |= {path} if found.back and found.too_few else set()
    if evidence != known.evidence:
        for path in records:
            known.runs[path].state = "new"  # its ledger may tell of nodes now
    known.evidence = evidence if answered else -1


def _halved_sweep(path: str, record: Record) -> str | None:
    """The sweep of a run that is judged at rungs."""
    return path.rpartition("/")[0] if record.config.halving.rungs else None


def _halve(root: Path, known: Census) -> None:
    """Record which runs halving has stopped; what follows from that is decided like everything else."""
    for sweep in sorted(known.halving):
        paths = [path for path in known.runs if path.rpartition("/")[0] == sweep]
        if all(known.runs[path].state in ("ended", "complete") for path in paths):
            continue
        found = dict(_readable(root, paths))
        if len(found) < len(paths):
            continue  # a rung is not judged until all its runs are known
        rules = [run.config.halving for path, run in found.items() if _halved_sweep(path, run)]
        if not rules:
            continue
        # A run that was resubmitted without rungs still counts in its rung.
        records = {
            path: run
            for path, run in found.items()
            if _halved_sweep(path, run) or any(said.event == "rung" for said in run.events)
        }
        runs = {path: _contender(run) for path, run in records.items()}
        out, through = judge(runs, len(rules[0].rungs), rules[0].keep)
        for path, run in records.items():
            if run.facts.final is not None or run.facts.completed or not _halved_sweep(path, run):
                continue
            if path in out:
                ledger_for(run).write(watch.HALVED, why=out[path].why, rung=out[path].rung)
                known.runs[path].state = "new"
            elif through.get(path, 0) > runs[path].promoted:
                ledger_for(run).write(_PROMOTED, rung=through[path] - 1)


def _contender(record: Record) -> Contender:
    since = record.facts.submitted_at
    rungs = {said.facts["rung"]: said.facts["heldout_loss"] for said in record.events if said.event == "rung"}
    over = record.facts.completed or record.facts.final is not None
    out = [said.facts["rung"] for said in record.events if said.event == watch.HALVED and said.time >= since]
    promoted = max((said.facts["rung"] + 1 for said in record.events if said.event == _PROMOTED), default=0)
    return Contender({rung: loss for rung, loss in rungs.items() if not out or rung <= out[-1]}, over, promoted)


def _decide(records: Iterable[Record], queue: Queue, now: float, silences: Mapping[Path, watch.Silence]) -> list[Seen]:
    """silences: what the last pass saw, by run directory."""
    records, found = list(records), []
    answers = Answers(records, queue)
    for record in records:
        job, silence = answers(record), silences.get(record.layout.path, watch.NO_SILENCE)
        found.append(Seen(record, job, watch.decide(record.facts, job, now, silence)))
    return found


def _entry(run: Seen, before: Entry, now: float, *, acted: bool, refused: bool) -> Entry:
    """What the next pass has to know about a run that this one has looked at."""
    record, job = run.record.facts, run.job
    if acted and run.decision.action is not Action.NOTHING:
        return Entry("new", record.address, record.successor)
    live = [one for one in (job.queued, job.successor) if one is not None and one.live]
    if record.completed or record.final is not None:
        return Entry("ended" if live or not record.completed else "complete", record.address, record.successor)
    kind = watch.glance(live[0] if live else None)
    unknown = refused or (kind == "gone" and run.decision.action is Action.NOTHING)
    settled = now - record.submitted_at > watch.FORGOTTEN_AFTER_S
    again_at = now + _UNKNOWN_AGAIN_S if unknown and (settled or refused) and record.sent_at is None else 0.0
    # Not `now`: reading this far may have taken as long as the file system stood still.
    silence = watch.silence(record, job, time.time(), before.silence)
    return Entry("open", record.address, record.successor, kind, again_at, *silence)
