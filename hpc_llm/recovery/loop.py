"""One pass over all runs below a root: read what they say, ask Slurm twice, act, write every act down."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.policy import Budgets
from hpc_llm.recovery.watch import NOTHING, Act, Action, JobFacts, RunFacts, decide
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import CONFIG_FILE, RunLayout
from hpc_llm.slurm import client
from hpc_llm.slurm.records import JobLife, QueuedJob

_LIFE_S = 14 * 86400.0  # how far back sacct is asked at most
SUBMISSIONS = ("submitted", "resubmitted")


@dataclass(frozen=True)
class Seen:
    """A run and what was done about it."""

    layout: RunLayout
    facts: RunFacts
    job: JobFacts
    action: Action


def find_runs(root: Path) -> list[RunLayout]:
    """All runs at or below `root`: its own, <root>/<name> and <root>/<sweep>/<name>."""
    patterns = (CONFIG_FILE, f"[!.]*/{CONFIG_FILE}", f"[!.]*/[!.]*/{CONFIG_FILE}")
    found = [path.parent for pattern in patterns for path in root.glob(pattern)]
    return [RunLayout(path) for path in sorted(found)]


def run_facts(layout: RunLayout) -> RunFacts:
    """What the run's own directory tells."""
    config: dict[str, Any] = json.loads(layout.config.read_text())
    events = ledger.read(layout.ledger)
    submissions = [event for event in events if event.event in SUBMISSIONS]
    last = submissions[-1] if submissions else None
    since = last.time if last else 0.0
    newest = max((event.facts["attempt"] for event in events if event.event == "started"), default=0)
    final = [event for event in events if event.time >= since and _is_final(event, newest)]
    recovery = config["recovery"]
    return RunFacts(
        address=str(last.facts["job"]) if last and last.facts.get("job") else None,
        submitted_at=since,
        completed=any(event.event == "completed" for event in events),
        final=str(final[-1].facts.get("cause", final[-1].event)) if final else None,
        history=attempts_since_submission(events, newest_step(layout.checkpoints)),
        budgets=Budgets(recovery["max_crashes"], recovery["max_no_progress"], config["run"]["max_gpu_hours"]),
        heartbeat_at=layout.heartbeat.stat().st_mtime if layout.heartbeat.exists() else None,
    )


def look(root: Path) -> list[Seen]:
    """Every run below `root` and what ought to be done about it; two calls of Slurm for all."""
    runs = list(_readable(root))
    open_runs = [facts for _, facts in runs if facts.address and not facts.completed and facts.final is None]
    jobs = _Answers(open_runs)
    now = time.time()
    return [Seen(layout, facts, job := jobs(facts), decide(facts, job, now)) for layout, facts in runs]


def _readable(root: Path) -> Iterator[tuple[RunLayout, RunFacts]]:
    """Runs with their facts; one that cannot be read keeps nobody from looking after the others."""
    for layout in find_runs(root):
        try:
            yield layout, run_facts(layout)
        except (OSError, ValueError, KeyError) as error:
            print(f"{layout.path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def act(seen: Iterable[Seen]) -> list[Seen]:
    """Carry out what `look` found; what was really done. Slurm's refusals are written down, its silence is not."""
    done = []
    for run in seen:
        if run.action == NOTHING:
            continue
        book = ledger.Ledger(run.layout.ledger, f"watchdog-{os.uname().nodename}-{os.getpid()}")
        try:
            facts = _carry_out(run)
        except client.SlurmRefused as error:
            book.write("refused", action=run.action.act.value, why=str(error), job=run.facts.address)
            continue
        except client.SlurmUnavailable:
            continue  # unknown: the next pass asks again
        book.write(run.action.act.value, why=run.action.why, **facts)
        done.append(run)
    return done


@contextlib.contextmanager
def only_watchdog(root: Path) -> Iterator[bool]:
    """Whether no other pass over `root` is under way; two watchdogs take turns."""
    with (root / ".watchdog.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _carry_out(run: Seen) -> dict[str, Any]:
    address = run.facts.address
    assert address is not None
    if run.action.act is Act.EXPEDITE:
        client.expedite(address)
    elif run.action.act is Act.RELEASE:
        client.release(address)
    elif run.action.act is Act.REQUEUE:
        client.requeue(address)
    elif run.action.act is Act.RESUBMIT:
        return {"job": _resubmit(run.layout, address)}
    return {"job": address}


def _resubmit(layout: RunLayout, address: str) -> str:
    """The frozen script again: a single job's, or its task of the sweep's; the new address."""
    task = address.partition("_")[2]
    job_id = client.submit(layout.script, *([f"--array={task}"] if task else []))
    return f"{job_id}_{task}" if task else str(job_id)


def _is_final(event: ledger.Event, newest_attempt: int) -> bool:
    """Whether the run ended with it. What an attempt says that another one has followed ends nothing."""
    if event.event in ("cancelled", "given-up"):
        return True
    if event.event != "ended" or event.facts.get("attempt", newest_attempt) < newest_attempt:
        return False
    return not event.facts.get("restart") and event.facts.get("cause") not in ("time-limit", "fenced")


class _Answers:
    """Slurm's answers for `runs`: one squeue, and one sacct for what squeue does not know."""

    def __init__(self, runs: list[RunFacts]) -> None:
        self.queued: dict[str, QueuedJob] = {}
        self.lives: dict[str, JobLife] = {}
        self.asked, self.remembered = False, False
        if not runs:
            return
        with contextlib.suppress(client.SlurmError):
            self.queued = {job.address: job for job in client.queued()}
            self.asked = True
        missing = {int(run.address.partition("_")[0]) for run in runs if run.address and run.address not in self.queued}
        if self.asked and missing:
            oldest = min(run.submitted_at for run in runs)
            with contextlib.suppress(client.SlurmError):
                lives = client.lives(sorted(missing), since_s=min(_LIFE_S, time.time() - oldest + 3600))
                self.lives = {life.address: life for life in lives}  # the last of an address is the newest
                self.remembered = True

    def __call__(self, run: RunFacts) -> JobFacts:
        address = run.address or ""
        return JobFacts(self.asked, self.queued.get(address), self.remembered, self.lives.get(address))
