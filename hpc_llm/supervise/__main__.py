"""`python -m hpc_llm.supervise RUN_DIR`: a run's supervisor, here or in its Slurm job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ClusterConfig
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout
from hpc_llm.supervise.place import LocalPlace, Place
from hpc_llm.supervise.slurm_place import SlurmPlace
from hpc_llm.supervise.supervisor import Supervisor


def main() -> int:
    """Supervise the run directory of the command line; the run's exit status."""
    run_dir = Path(sys.argv[1])
    try:
        cluster = freeze.read_config(RunLayout(run_dir)).cluster
    except InputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    return Supervisor(run_dir, _place(cluster)).run()


def _place(cluster: ClusterConfig) -> Place:
    """The allocation, if this process is its batch shell; else this machine."""
    in_slurm = "SLURM_JOB_ID" in os.environ and "SLURM_JOB_NODELIST" in os.environ
    if in_slurm and cluster.launcher == "slurm":
        return SlurmPlace(dict(os.environ), cluster)
    return LocalPlace()


if __name__ == "__main__":
    sys.exit(main())
