"""`python -m hpc_llm.plan [+cluster=NAME] [key=value…]`: what a run will need; nothing is
written.
"""

from __future__ import annotations

import dataclasses
import sys

from hpc_llm.config import verbs
from hpc_llm.config.compose import compose_sweep, searches
from hpc_llm.config.errors import InputError
from hpc_llm.planning.render import render_all
from hpc_llm.submission import arrays
from hpc_llm.submission.examine import examine_all


def main(words: list[str] | None = None) -> int:
    """Print the plan of every run that `words` describe."""
    return verbs.run("plan", _plan, words)


def _plan(words: list[str]) -> int:
    if searches(words):
        raise InputError(
            "search.trials: what a search chooses is planned by `python -m hpc_llm.submit … "
            "dry_run=true`"
        )
    configs = arrays.name_runs(compose_sweep([*words, "dry_run=true"]))
    if configs[0].test_only:
        raise InputError(
            "test_only=true: asks Slurm, and a plan asks nobody; give it to `python -m "
            "hpc_llm.submit`"
        )
    plans = examine_all(configs)
    if configs[0].json:
        documents = [dataclasses.asdict(plan) for plan in plans]
        verbs.print_json(documents if len(documents) > 1 else documents[0])
    else:
        print(render_all(configs, plans))
    return 0


if __name__ == "__main__":
    sys.exit(main())
