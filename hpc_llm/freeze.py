"""`python -m hpc_llm.freeze +cluster=NAME [key=value…]`: freeze a run and print its directory, without submitting it.

For batch scripts written by hand (sbatch/train.sbatch): they freeze when the job first starts, and then become the
run's supervisor.
"""

from __future__ import annotations

import os
import sys

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError


def main(words: list[str] | None = None) -> int:
    """0, with the run directory as the last line of standard output; 2 with a line per mistake."""
    return verbs.run("freeze", _freeze, words)


def _freeze(words: list[str]) -> int:
    from hpc_llm.config.compose import compose
    from hpc_llm.launch import cluster

    config = compose(words)
    if config.cluster.launcher != "slurm":
        raise InputError(f"cluster={config.cluster.name}: freeze is for Slurm jobs; give +cluster=NAME")
    # A job written by hand says in its header what submit would take from the configuration.
    job = {name.replace("SLURM_JOB_", "SBATCH_"): value for name, value in os.environ.items()}
    layout = cluster.freeze_here(cluster.with_site_defaults(config, job), words)
    print(layout.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
