"""`python -m hpc_llm.submit [+cluster=NAME] [key=value…] [-m]`: the main job, here or on a
cluster.
"""

from __future__ import annotations

import os
import sys

from hpc_llm.config import verbs
from hpc_llm.config.compose import compose_sweep, searches, sound_part
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.submission import arrays
from hpc_llm.submission.examine import examine_all


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 done (or submitted), 1 the run failed, 2 the input is wrong, 130 stopped by
    Ctrl-C.
    """
    return verbs.run("submit", _submit, words)


def _submit(words: list[str]) -> int:
    if searches(words):
        return _search(words)
    try:
        configs = arrays.name_runs(compose_sweep(words))
    except InputError as error:
        raise InputError([*error.problems, *_further(words, error.problems)]) from error
    launchers = {config.cluster.launcher for config in configs}
    if len(launchers) > 1:
        raise InputError(
            "cluster: a sweep runs here or on a cluster, not both; leave cluster=local out of it"
        )
    if launchers == {"slurm"}:
        from hpc_llm.submission import cluster

        return _on_cluster(
            [cluster.with_site_defaults(config, os.environ) for config in configs], words
        )
    plans = examine_all(configs)
    if configs[0].dry_run:
        from hpc_llm.submission import report

        report.dry_run(configs, plans)
        return 0
    from hpc_llm.submission import (
        local,
    )  # rich takes 0.1 s to import, and a dry run needs none of it

    return local.run(configs[0], words) if len(configs) == 1 else local.run_sweep(configs, words)


def _search(words: list[str]) -> int:
    from hpc_llm.submission import search

    with search.begin(words, os.environ) as (found, configs):
        if not configs:
            print(
                f"{found.sweep}: {len(found.asked)} trials, {len(found.ended)} ended; nothing to "
                "submit now"
            )
            return 0
        return _on_cluster(configs, words)


def _further(words: list[str], problems: list[str]) -> list[str]:
    """What else is wrong with the words that mean something."""
    try:
        if configs := sound_part(words, problems):
            examine_all(configs)
    except InputError as error:
        return [problem for problem in error.problems if problem not in problems]
    return []


def _on_cluster(configs: list[RunConfig], words: list[str]) -> int:
    from hpc_llm.slurm.client import SlurmUnavailable
    from hpc_llm.submission import cluster, report

    plans = examine_all(configs)
    try:
        if configs[0].dry_run:
            report.dry_run(configs, plans)
        elif configs[0].test_only:
            print("\n".join(cluster.estimates(configs, plans)))
        else:
            return report.outcome(cluster.submit(configs, words), configs)
    except SlurmUnavailable as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
