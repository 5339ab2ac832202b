"""hpc_llm: train language models on any Slurm cluster, without root and without Kubernetes."""

import sys

__version__ = "0.1.0"

# Every command passes here first. Older Pythons parse this file, and hardly another one.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        "hpc_llm: {} is Python {}.{}, and 3.10 or later is needed; activate an environment that "
        "has it, or name one: PYTHON=/PATH/python3 tools/quickstart.sh (for jobs: "
        "cluster.python=/PATH/python3)\n".format(sys.executable, *sys.version_info[:2])
    )
    sys.exit(2)
