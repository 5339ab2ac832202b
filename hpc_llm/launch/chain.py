"""run.depends_on as a Slurm dependency: the job waits until the jobs of those runs have succeeded."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import dependency, ledger
from hpc_llm.slurm.records import QueuedJob


def waits(configs: Sequence[RunConfig], live: Sequence[QueuedJob]) -> dict[str | None, str]:
    """run.depends_on → sbatch's --dependency, or "". InputError where an incomplete run has no job to wait for."""
    found = {config.run.depends_on: config for config in configs}
    return {name: _dependency(config, {job.address for job in live}) if name else "" for name, config in found.items()}


def require_complete(config: RunConfig) -> None:
    """A run in the foreground cannot wait: InputError unless what it depends on is complete."""
    if config.run.depends_on is None:
        return
    if open_runs := [run for run in dependency.runs(config) if not dependency.complete(run)]:
        raise InputError(
            f"run.depends_on={config.run.depends_on}: {open_runs[0].name} is not complete, and a run in the "
            "foreground cannot wait for it; run it first"
        )


def _dependency(config: RunConfig, live: set[str]) -> str:
    addresses = []
    for run in dependency.runs(config):
        if dependency.complete(run):
            continue
        known = [str(event.facts["job"]) for event in ledger.read(run.ledger) if event.facts.get("job")]
        address = next((address for address in reversed(known) if address in live), None)
        if address is None:
            raise InputError(
                f"run.depends_on={config.run.depends_on}: {run.name} is neither complete nor has it a job; "
                "submit it again first"
            )
        addresses.append(address)
    return f"afterok:{':'.join(addresses)}" if addresses else ""
