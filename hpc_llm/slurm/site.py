from __future__ import annotations

from collections.abc import Sequence

from hpc_llm.config.schema import RunConfig
from hpc_llm.slurm import client


def most_tasks(configs: Sequence[RunConfig]) -> int:
    """Tasks that this Slurm takes in one array: MaxArraySize caps the index, max_array_tasks their
    number.
    """
    if not any(config.run.sweep for config in configs):
        return 1
    said = client.config()
    most = int(said.get("MaxArraySize", "1001"))
    options = dict(
        word.strip().partition("=")[::2] for word in said.get("SchedulerParameters", "").split(",")
    )
    limit = options.get("max_array_tasks", "")
    return max(1, min(most, int(limit)) if limit.isdigit() else most)
