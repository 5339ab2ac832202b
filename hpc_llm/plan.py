"""`python -m hpc_llm.plan [+cluster=NAME] [key=value…]`: what a run will need.

Nothing is written.
"""

from __future__ import annotations

import sys

from hpc_llm.config import hints, verbs
from hpc_llm.config.compose import compose_sweep, searches
from hpc_llm.config.errors import InputError
from hpc_llm.submission.dry_run import plain_plans, plans_text
from hpc_llm.submission.examine import examine_all
from hpc_llm.submission.naming import name_runs


def main(argv: list[str] | None = None) -> int:
    """Print the plan of every run that `argv` describes."""
    return verbs.run("plan", _plan, argv)


def _plan(argv: list[str]) -> int:
    if searches(argv):
        raise InputError(
            "search.trials: what a search chooses is planned by "
            f"`{hints.command('submit')} … dry_run=true`"
        )
    configs = name_runs(compose_sweep([*argv, "dry_run=true"]))
    if configs[0].test_only:
        raise InputError(
            "test_only=true: asks Slurm, and a plan asks nobody; give it to "
            f"`{hints.command('submit')}`"
        )
    runs = examine_all(configs)
    if not configs[0].json:
        print(plans_text(runs))
        return 0
    plans = plain_plans(runs)
    if len(plans) == 1:
        verbs.print_json(plans[0])
    else:
        verbs.print_json(plans)
    return 0


if __name__ == "__main__":
    sys.exit(main())
