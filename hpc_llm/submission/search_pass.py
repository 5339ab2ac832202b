"""What the watchdog does at each pass with searches: it submits their next trials."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hpc_llm.runs.layout import RootLayout
from hpc_llm.slurm.client import SlurmError
from hpc_llm.storage import trust
from hpc_llm.storage.locks import Busy, locked
from hpc_llm.submission import cluster, trials
from hpc_llm.submission.examine import examine_all
from hpc_llm.submission.search_file import Search, read


def go_on(root: Path) -> Iterator[str]:
    """Submit the next trials of every search below `root`.

    A line for each search that got any, or could not.
    """
    folder = RootLayout(root).searches
    for path in sorted(folder.glob("*.json")):
        if reason := trust.first_distrusted([folder, path]):
            trust.passed_over(path, reason)
            continue
        try:
            with locked(path.with_suffix(".lock"), timeout_s=0):
                yield from _next(read(path))
        except Busy:
            continue  # its user is at it
        except SlurmError:
            raise
        except Exception as error:  # what is wrong with one search must not stop the watchdog
            yield f"{path.stem}: passed over ({error})"


def _next(search: Search) -> Iterator[str]:
    before = (len(search.asked), len(search.ended))
    wanted = trials.next_trials(search)
    for line in trials.drop_unsound(search, wanted):
        yield f"{search.sweep}: {line}"
    if before != (len(search.asked), len(search.ended)):
        search.save()
    sound = trials.sound_ones(search, wanted)
    if not sound:
        return
    mask = os.umask(0o077)
    try:
        cluster.submit(examine_all(sound), search.words)
    finally:
        os.umask(mask)
    yield f"{search.sweep}: {len(sound)} trials submitted, {len(search.ended)} ended"
    first = search.layout(0)
    newest = search.layout(trials.number_of(sound[-1]))
    if first.code.exists() and first.code_hash() != newest.code_hash():
        yield f"{search.sweep}: {newest.name} runs another version of hpc_llm than {first.name}"
