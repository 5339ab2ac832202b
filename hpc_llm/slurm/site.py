"""What a site has set in its Slurm, as `scontrol show config` says it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hpc_llm.config.schema import RunConfig
from hpc_llm.slurm import client

_LEAVING_REQUEUES = (24, 5)
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


def requeues_within_grace(settings: Mapping[str, str]) -> bool:
    """Whether a preempted job that exits within its grace time is requeued at that moment.

    settings: of `scontrol show config`. From 24.05 on; before, any exit then ends the job for good.
    False where they do not say.
    """
    version = re.match(r"(\d+)\.(\d+)", settings.get("SLURM_VERSION", ""))
    if version is None or (int(version[1]), int(version[2])) < _LEAVING_REQUEUES:
        return False
    return "REQUEUE" in settings.get("PreemptMode", "").upper().split(",")


def _options(text: str) -> dict[str, str]:
    """`a,b=3` → {a: "", b: "3"}."""
    options = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        options[name] = value
    return options
