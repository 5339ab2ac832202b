"""`python -m hpc_llm.freeze +cluster=NAME [key=value…]`: freeze a run and print its directory.

The run is not submitted. This is for batch scripts written by hand (sbatch/train.sbatch): they
freeze when the job first starts, and then become the run's supervisor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig


def main(argv: list[str] | None = None) -> int:
    """0, with the run directory as the last line of standard output; 2 with a line per mistake."""
    return verbs.run("freeze", _freeze, argv)


def _freeze(argv: list[str]) -> int:
    from hpc_llm.config.compose import compose
    from hpc_llm.submission import cluster

    config = compose(argv)
    if config.cluster.launcher != "slurm":
        raise InputError(
            f"cluster={config.cluster.name}: freeze is for Slurm jobs; give +cluster=NAME"
        )
    # A batch script written by hand has in its header what submit would take from the
    # configuration.
    job = {name.replace("SLURM_JOB_", "SBATCH_"): value for name, value in os.environ.items()}
    config = cluster.with_site_defaults(config, job)
    if "SLURM_JOB_ID" in os.environ and not _sets_time_limit(argv):
        config = _with_own_limit(config)
    layout = cluster.freeze_here(config, argv)
    print(layout.path)
    return 0


def _sets_time_limit(argv: list[str]) -> bool:
    return any(word.lstrip("+").startswith("cluster.time_min=") for word in argv)


def _with_own_limit(config: RunConfig) -> RunConfig:
    """With the time limit of the job that this process runs in.

    So a watchdog's resubmission has it too.
    """
    from hpc_llm.slurm import client

    with contextlib.suppress(client.SlurmUnavailable, client.SlurmRefused):
        for job in client.show(client.own_address(os.environ)):
            minutes = None
            if job.time_limit_s is not None:
                minutes = max(1, int(job.time_limit_s) // 60)
            own = dataclasses.replace(config.cluster, time_min=minutes)
            return dataclasses.replace(config, cluster=own)
    return config


if __name__ == "__main__":
    sys.exit(main())
