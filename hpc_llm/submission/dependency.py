"""run.depends_on: the run, or all runs of the sweep, that must be complete before this one begins.

On a cluster it becomes a Slurm dependency: the job waits until the jobs of those runs have
succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.recovery.ownership import is_of_run
from hpc_llm.runs import extension, identity
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.runs.story import read_story
from hpc_llm.slurm.records import QueuedJob


def problems(config: RunConfig, layout: RunLayout) -> list[str]:
    """What can be checked before submission: it must be below the same root, and be another run."""
    name = config.run.depends_on
    if name is None:
        return []
    path = PurePath(name)
    outside = path.is_absolute() or ".." in path.parts
    waits_for = [] if outside else runs(config)
    if not waits_for:
        return [
            f"run.depends_on={name}: no run or sweep of that name lies in "
            f"{identity.root_of(config)}; submit it first, or give its path below run.root (a "
            "run's name, SWEEP or SWEEP/RUN)"
        ]
    if layout in waits_for:
        return [f"run.depends_on={name}: the run would wait for itself"]
    return []


def runs(config: RunConfig) -> list[RunLayout]:
    """The runs that run.depends_on names; none if it is not set."""
    path = identity.root_of(config) / str(config.run.depends_on)
    run = RunLayout(path)
    if run.config.exists():
        return [run]
    return SweepLayout(path).runs()


def complete(run: RunLayout) -> bool:
    """Whether the run has reached its end, as its ledger says."""
    return read_story(run.ledger).has_reached(extension.planned_steps(run) or 0)


def waits(configs: Sequence[RunConfig], live: Sequence[QueuedJob]) -> dict[str | None, str]:
    """run.depends_on → sbatch's --dependency, or "".

    InputError where a run that is not complete has no job to wait for.
    """
    config_by_name = {config.run.depends_on: config for config in configs}
    jobs = {job.address: job for job in live}
    dependencies = {}
    for name, config in config_by_name.items():
        dependencies[name] = _dependency(config, jobs) if name else ""
    return dependencies


def require_complete(config: RunConfig) -> None:
    """A run in the foreground cannot wait: InputError unless what it depends on is complete."""
    if config.run.depends_on is None:
        return
    for run in runs(config):
        if not complete(run):
            raise InputError(
                f"run.depends_on={config.run.depends_on}: {run.name} is not complete, and a "
                "run in the foreground cannot wait for it; run it first"
            )


def _dependency(config: RunConfig, live: Mapping[str, QueuedJob]) -> str:
    addresses = []
    for run in runs(config):
        if complete(run):
            continue
        address = _newest_job(run, live)
        if address is None:
            raise InputError(
                f"run.depends_on={config.run.depends_on}: {run.name} is neither complete nor has "
                "it a job; submit it again first"
            )
        addresses.append(address)
    return f"afterok:{':'.join(addresses)}" if addresses else ""


def _newest_job(run: RunLayout, live: Mapping[str, QueuedJob]) -> str | None:
    """The newest of the run's jobs that is among those in the queue."""
    story = read_story(run.ledger)
    for address in reversed(story.jobs):
        if address in live and is_of_run(live[address], address, run, story):
            return address
    return None
