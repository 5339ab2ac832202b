#!/usr/bin/env bash
# From nothing to a trained model: makes .venv, installs, and trains mpt-tiny on the text of Python's standard library.
# Needs Python 3.10 or later; no compiler, no root, no GPU, no data.
#
#   tools/quickstart.sh [key=value…]     further arguments go to `.venv/bin/python -m hpc_llm.submit`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/environment.sh
make_environment ""
# By its path, as the user types it afterwards: what it prints names the Python that PATH does not find.
exec .venv/bin/python -m hpc_llm.submit local=true "$@"  # even where Slurm is installed: this is a try-out
