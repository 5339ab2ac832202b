"""The runs that the words of a sweep describe."""

from __future__ import annotations

from hpc_llm.config.compose import compose_sweep
from hpc_llm.config.schema import RunConfig
from hpc_llm.submission.naming import name_runs


def sweep(*words: str) -> list[RunConfig]:
    return name_runs(compose_sweep(["cluster=local-slurm", *words, "-m"]))
