"""A search by results: Optuna is told what trials came to, and what it asks for next is submitted.

A search is one file, <root>/.searches/<sweep>.json, with the space as it was composed when it
began; its trials are runs of that sweep like any others, called trial-0000, trial-0001, … A trial
is written down before it is submitted, and submitted until its ledger says so: killed anywhere, the
next pass goes on. Words that are typed again change `search.*` alone (retyped.py): losses of
another training are never told to the same study.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.search_space import compose_space
from hpc_llm.runs import freeze, identity
from hpc_llm.runs.layout import RootLayout
from hpc_llm.storage.locks import one_at_a_time
from hpc_llm.submission import retyped, sampler, trials
from hpc_llm.submission.search_file import Search, corners, read


@contextlib.contextmanager
def begin(
    argv: list[str], environment: Mapping[str, str]
) -> Iterator[tuple[Search, list[RunConfig]]]:
    """The search that `argv` describes, and its trials to submit now.

    It is new, or as far as it has come. Unless this is a dry run or a test, it is written down, and
    nobody else has it meanwhile. InputError where the space cannot be composed, another search has
    the name, or not one of its first trials can be planned.
    """
    sampler.require()
    search, first = _typed(argv, environment)
    path = RootLayout(search.root).search(search.sweep)
    kept = not (first.dry_run or first.test_only)
    with contextlib.ExitStack() as stack:
        if kept:
            freeze.make_folder(search.root, first.run.group)
            path.parent.mkdir(exist_ok=True)
            busy = f"run.name={search.sweep}: another submission or a watchdog is at this search"
            stack.enter_context(one_at_a_time(path.with_suffix(".lock"), busy))
        if path.exists():
            search = retyped.taken_up(read(path), search)
        wanted = trials.next_trials(search)
        ended = dict(search.ended)
        problems = list(trials.drop_unsound(search, wanted))
        sound = trials.sound_ones(search, wanted)
        if wanted and problems and not sound:
            raise InputError(problems)
        for problem in problems:
            print(f"{search.sweep}: {problem}", file=sys.stderr)
        if kept and (search.asked or ended):
            search.save()
        yield search, sound


def _typed(argv: list[str], environment: Mapping[str, str]) -> tuple[Search, RunConfig]:
    """A search as it begins, and the configuration of its first corner."""
    space = compose_space(argv)
    first = space.config(corners(space.dimensions)[0])
    if first.cluster.launcher == "local":
        raise InputError(
            "search.trials: a search needs a cluster, and a watchdog that submits its trials"
        )
    sweep = first.run.sweep or first.run.name
    if sweep is None:
        raise InputError(
            "run.name: missing; a search needs a name, for its trials come one after another"
        )
    site = {name: value for name, value in environment.items() if name.startswith("SBATCH_")}
    return Search(sweep, identity.root_of(first), space, argv, site, sys.executable), first
