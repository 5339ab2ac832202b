"""What a site has set in its Slurm, as `scontrol show config` says it."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_llm.config.schema import RunConfig
from hpc_llm.slurm import client

_MAX_ARRAY_SIZE = 1001  # Slurm's default


def most_tasks(configs: Sequence[RunConfig]) -> int:
    """Tasks that Slurm takes in one array; 1 for a run that is no part of a sweep.

    MaxArraySize caps the index, max_array_tasks their number.
    """
    if not any(config.run.sweep for config in configs):
        return 1
    settings = client.config()
    most = int(settings.get("MaxArraySize", str(_MAX_ARRAY_SIZE)))
    limit = _options(settings.get("SchedulerParameters", "")).get("max_array_tasks", "")
    if limit.isdigit():
        most = min(most, int(limit))
    return max(1, most)


def requeued_exit_codes() -> set[int]:
    """Exit codes after which Slurm itself requeues a job (RequeueExit). SlurmError."""
    codes: set[int] = set()
    for part in client.config().get("RequeueExit", "").replace("(null)", "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            codes.update(range(int(first), int(last or first) + 1))
    return codes


def _options(text: str) -> dict[str, str]:
    """`a,b=3` → {a: "", b: "3"}."""
    options = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        options[name] = value
    return options
