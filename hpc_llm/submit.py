"""`python -m hpc_llm.submit [+cluster=NAME] [key=value…] [-m]`: the main job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hpc_llm.config import verbs
from hpc_llm.config.compose import compose_sweep, searches, sound_part
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.notes import notes
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.submission import dry_run
from hpc_llm.submission.examine import examine_all
from hpc_llm.submission.naming import name_runs


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` describes; the exit status.

    0 done (or submitted), 1 the run failed, 2 the input is wrong, 130 stopped by Ctrl-C.
    """
    return verbs.run("submit", _submit, argv)


def _submit(argv: list[str]) -> int:
    if searches(argv):
        return _search(argv)
    try:
        configs = name_runs(compose_sweep(argv))
    except InputError as error:
        raise InputError([*error.problems, *_further_problems(argv, error.problems)]) from error
    launchers = set()
    for config in configs:
        launchers.add(config.cluster.launcher)
    if len(launchers) > 1:
        raise InputError(
            "cluster: a sweep runs here or on a cluster, not both; leave cluster=local out of it"
        )
    if launchers == {"local"}:
        return _here(configs, argv)
    from hpc_llm.submission import cluster

    return _on_cluster(cluster.at_this_site(configs, os.environ), argv)


def _here(configs: list[RunConfig], argv: list[str]) -> int:
    runs = examine_all(configs)
    if configs[0].dry_run:
        dry_run.show(runs)
        return 0
    _warn(runs)
    if len(runs) > 1:
        from hpc_llm.submission.local_sweep import run_sweep

        return run_sweep(runs, argv)
    from hpc_llm.submission import local  # it imports rich, which takes 0.1 s

    return local.run(runs[0], argv)


def _warn(runs: Sequence[PlannedRun]) -> None:
    """Each thing once that the plans would warn of; whoever submits may not have looked at one."""
    said = dict[str, None]()
    for run in runs:
        said.update(dict.fromkeys(notes(run.config, run.plan)))
    for note in said:
        print(f"WARNING: {note}", file=sys.stderr)


def _search(argv: list[str]) -> int:
    from hpc_llm.submission import search

    with search.begin(argv, os.environ) as (begun, configs):
        if not configs:
            print(
                f"{begun.sweep}: {len(begun.asked)} trials, {len(begun.ended)} ended; nothing to "
                "submit now"
            )
            return 0
        return _on_cluster(configs, argv)


def _further_problems(argv: list[str], problems: list[str]) -> list[str]:
    """What else is wrong with the words that mean something."""
    try:
        configs = sound_part(argv, problems)
        if configs:
            examine_all(configs)
    except InputError as error:
        return [problem for problem in error.problems if problem not in problems]
    return []


def _on_cluster(configs: list[RunConfig], argv: list[str]) -> int:
    from hpc_llm.slurm.client import SlurmUnavailable
    from hpc_llm.submission import cluster, report

    runs = examine_all(configs)
    try:
        if configs[0].dry_run:
            dry_run.show(runs)
        elif configs[0].test_only:
            print("\n".join(cluster.estimates(runs)))
        else:
            _warn(runs)
            return report.outcome(cluster.submit(runs, argv), runs)
    except SlurmUnavailable as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
