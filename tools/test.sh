#!/usr/bin/env bash
# All set-up and the whole suite: ruff, mypy, import rules, unit tests, real training processes, real Slurm.
#
#   tools/test.sh            everything this machine can run; says what it leaves out
#   tools/test.sh --fast     no training processes, no services: two minutes
#   tools/test.sh … ARGS     further arguments go to pytest; --long fires a hundred faults at runs on Slurm
#
# With CI=true nothing may be left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/environment.sh
make_environment "[test]"
PATH=$PWD/.venv/bin:$PATH
export PATH
fast=
if [ "${1:-}" = --fast ]; then
    fast=1
    shift
fi
ruff check .
ruff format --check .
mypy
python tools/density.py
if [ -n "$fast" ]; then
    exec python -m pytest -n 2 -m "not slow and not slurm" "$@"
fi
tools/install_slurm.sh
tools/install_tcmalloc.sh
for optimizer in fused_adam fused_lion cpu_adam; do
    python -m hpc_llm.build "optim=$optimizer" cluster.device=cpu
done
python -m pytest -n 2 -m "not slurm" "$@"
# Six clusters, each with its own nodes and ports: their runs wait for Slurm most of the time.
exec python -m pytest -n 6 --dist load --maxschedchunk 1 -m slurm "$@"
