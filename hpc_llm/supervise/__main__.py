"""`python -m hpc_llm.supervise RUN_DIR`: a run's supervisor, on this machine or as the batch shell
of a Slurm job.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout
from hpc_llm.supervise.place import LocalPlace, Place, SlurmPlace
from hpc_llm.supervise.supervisor import Supervisor


def main() -> int:
    """Supervise the run directory of the command line, in the allocation if this is its batch
    shell.
    """
    in_slurm = "SLURM_JOB_ID" in os.environ and "SLURM_JOB_NODELIST" in os.environ
    run_dir = Path(sys.argv[1])
    try:
        cluster = freeze.read_config(RunLayout(run_dir)).cluster
    except InputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    slurm = in_slurm and cluster.launcher == "slurm"
    place: Place = SlurmPlace(dict(os.environ), cluster.nodes) if slurm else LocalPlace()
    return Supervisor(run_dir, place).run()


if __name__ == "__main__":
    sys.exit(main())
