"""Look at runs: what their directories and Slurm tell, and what should be done about each."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery import outside
from hpc_llm.recovery.observations import JobAnswer
from hpc_llm.recovery.policy import Decision
from hpc_llm.recovery.run_record import RunRecord, read_record
from hpc_llm.recovery.slurm_answers import SlurmAnswers, SlurmQueue
from hpc_llm.runs import below
from hpc_llm.runs.layout import RunLayout


@dataclass(frozen=True)
class Seen:
    """A run, what Slurm says of its job, and what is to be done about it."""

    record: RunRecord
    job: JobAnswer
    decision: Decision


def look_at_root(root: Path) -> list[Seen]:
    """Every run at or below `root` and what should be done about it; nothing is written."""
    return decide(read_all(root), SlurmQueue(), time.time(), {})


def read_all(root: Path) -> list[RunRecord]:
    """Every run at or below `root` that can be read; Slurm is not asked."""
    paths = [str(run.path.relative_to(root)) for run in below.find_runs(root)]
    return [record for _, record in read_each(root, paths)]


def read_each(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, RunRecord]]:
    """The runs at these paths below `root`, with their paths.

    One that cannot be read does not keep the others from being looked after.
    """
    for path in paths:
        layout = RunLayout(root / path)
        try:
            yield path, read_record(layout)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{layout.path}: passed over, it cannot be read ({error!r})", file=sys.stderr)


def decide(
    records: Collection[RunRecord],
    queue: SlurmQueue,
    now: float,
    silences: Mapping[Path, outside.Silence],
) -> list[Seen]:
    """What to do about each of `records`. silences: what the last pass saw, by run directory."""
    answers = SlurmAnswers(records, queue)
    all_seen = []
    for record in records:
        job = answers.of(record)
        silence = silences.get(record.layout.path, outside.NO_SILENCE)
        decision = outside.decide_outside(record.summary, job, now, silence)
        all_seen.append(Seen(record, job, decision))
    return all_seen


def in_other_clusters(all_seen: Iterable[Seen]) -> list[str]:
    """A line for the runs of each cluster that Slurm's commands do not ask here."""
    names = defaultdict[str, list[str]](list)
    for seen in all_seen:
        if seen.job.other_cluster is not None and not seen.record.summary.over:
            names[seen.job.other_cluster].append(seen.record.layout.name)
    lines = []
    for why, runs in names.items():
        more = f" and {len(runs) - 1:,} more" if len(runs) > 1 else ""
        lines.append(f"{runs[0]}{more}: {why}")
    return lines
