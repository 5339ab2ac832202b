"""run.depends_on as a Slurm dependency: the job waits until the jobs of those runs have
succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.runs.story import read_story
from hpc_llm.slurm.records import QueuedJob


def waits(configs: Sequence[RunConfig], live: Sequence[QueuedJob]) -> dict[str | None, str]:
    """run.depends_on → sbatch's --dependency, or "". InputError where an incomplete run has no job
    to wait for.
    """
    found = {config.run.depends_on: config for config in configs}
    return {
        name: _dependency(config, {job.address for job in live}) if name else ""
        for name, config in found.items()
    }


def require_complete(config: RunConfig) -> None:
    """A run in the foreground cannot wait: InputError unless what it depends on is complete."""
    if config.run.depends_on is None:
        return
    if open_runs := [run for run in runs(config) if not complete(run)]:
        raise InputError(
            f"run.depends_on={config.run.depends_on}: {open_runs[0].name} is not complete, and a "
            "run in the foreground cannot wait for it; run it first"
        )


def _dependency(config: RunConfig, live: set[str]) -> str:
    addresses = []
    for run in runs(config):
        if complete(run):
            continue
        known = reversed(read_story(run.ledger).jobs)
        address = next((address for address in known if address in live), None)
        if address is None:
            raise InputError(
                f"run.depends_on={config.run.depends_on}: {run.name} is neither complete nor has "
                "it a job; submit it again first"
            )
        addresses.append(address)
    return f"afterok:{':'.join(addresses)}" if addresses else ""


# -- run.depends_on: the run, or all runs of the sweep, that must be complete before this one
# begins.


def problems(config: RunConfig) -> list[str]:
    """What can be checked before submission: it must be below the same root, and be another run."""
    name = config.run.depends_on
    if name is None:
        return []
    if (
        PurePath(name).is_absolute()
        or ".." in PurePath(name).parts
        or not (waits_for := runs(config))
    ):
        return [
            f"run.depends_on={name}: no run or sweep of that name lies in "
            f"{freeze.root_of(config)}; submit it first, or give its path below run.root (a run's "
            "name, SWEEP or SWEEP/RUN)"
        ]
    if freeze.layout_for(config) in waits_for:
        return [f"run.depends_on={name}: the run would wait for itself"]
    return []


def runs(config: RunConfig) -> list[RunLayout]:
    """The runs that it names; none if it is not set."""
    path = freeze.root_of(config) / str(config.run.depends_on)
    return [RunLayout(path)] if RunLayout(path).config.exists() else SweepLayout(path).runs()


def complete(run: RunLayout) -> bool:
    return read_story(run.ledger).completed
