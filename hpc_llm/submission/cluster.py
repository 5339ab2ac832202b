"""Runs on a cluster: freeze, render, submit, and back at the prompt."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import extension, freeze, identity
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.slurm import client
from hpc_llm.slurm.site import most_tasks
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import one_at_a_time
from hpc_llm.submission import backlog, dependency, prerequisites, send
from hpc_llm.submission.arrays import divide, of_job
from hpc_llm.submission.examine import examine, examine_again
from hpc_llm.submission.left_alone import left_alone
from hpc_llm.submission.send_all import Job, Sender

_SITE_KEYS = ("account", "partition", "qos", "constraint", "reservation")


@dataclass(frozen=True)
class Outcome:
    """What a submission did, and which runs it left alone and why."""

    jobs: list[Job]
    left: dict[Path, str]
    waiting: list[backlog.Backlog]  # what Slurm has no room for yet
    other_code: list[RunLayout]  # runs that go on with another version than they had
    longer: list[str]  # what is to be said of runs that go on further than they were frozen for


def with_site_defaults(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """SBATCH_ACCOUNT and its like of the user's shell, as if they had been given as keys.

    So what holds is frozen and can be seen. InputError where the shell names a cluster for sbatch
    alone, or several: the other commands would not find the job.
    """
    _require_one_cluster(environment)
    defaults: dict[str, Any] = {}
    for key in _SITE_KEYS:
        value = environment.get(f"SBATCH_{key.upper()}")
        if value and getattr(config.cluster, key) is None:
            defaults[key] = value
    if not defaults:
        return config
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, **defaults))


def _require_one_cluster(environment: Mapping[str, str]) -> None:
    asked = environment.get("SLURM_CLUSTERS")
    for_sbatch = environment.get("SBATCH_CLUSTERS")
    if for_sbatch and for_sbatch != asked:
        raise InputError(
            f"SBATCH_CLUSTERS={for_sbatch}: it sends jobs where no other command of Slurm's asks "
            f"for them; export SLURM_CLUSTERS={for_sbatch} instead, which all of them heed"
        )
    if asked is not None and ("," in asked or asked == "all"):
        raise InputError(
            f"SLURM_CLUSTERS={asked}: one cluster's name is expected, in which all jobs of "
            "run.root live (sinfo --clusters=all shows them)"
        )


def at_this_site(configs: Sequence[RunConfig], environment: Mapping[str, str]) -> list[RunConfig]:
    """`with_site_defaults` of each."""
    return [with_site_defaults(config, environment) for config in configs]


def estimates(runs: Sequence[PlannedRun]) -> list[str]:
    """What Slurm would do with each job or array (`sbatch --test-only`).

    Nothing is queued or written.
    """
    require_sbatch()
    configs = [run.config for run in runs]
    try:
        scripts = divide(runs, most_tasks(configs))
        return [f"{script.name}: {client.test_only(script.text)}" for script in scripts]
    except client.SlurmRefused as error:
        raise InputError(_refusal(configs[0], error)) from None


def freeze_here(config: RunConfig, argv: list[str]) -> RunLayout:
    """Freeze one run for the job that this process is in, or that will be submitted by hand.

    Its directory.
    """
    if config.run.depends_on is not None:
        raise InputError(
            "run.depends_on: a script written by hand waits by sbatch --dependency=afterok:JOB; "
            "leave it out"
        )
    restrict_access(config.run.group)
    run = examine(config)
    prerequisites.prepare([run])
    (run,) = examine_again([run])
    address = client.own_address(os.environ) if "SLURM_JOB_ID" in os.environ else ""
    task = address.partition("_")[2]
    with _alone(config):
        script = of_job(run, int(task) if task else None)
        freeze.freeze(run)
        script.write()
    if address:
        send.record_submitted({address: run.layout}, time.time(), words=argv)
    return run.layout


def submit(runs: Sequence[PlannedRun], argv: list[str]) -> Outcome:
    """Freeze the runs and submit them, a sweep as arrays.

    Those that are queued or complete are left alone. InputError with what the user can mend, in
    Slurm's words where they are Slurm's; SlurmUnavailable where Slurm does not answer. Then no run
    directory that this call made is left, but for what Slurm accepted, or may have.
    """
    first = runs[0].config
    root = identity.root_of(first)
    require_sbatch()
    restrict_access(first.run.group)
    prerequisites.prepare(runs)
    runs = examine_again(runs)
    with _alone(first):
        queue = client.queued()
        live = [job for job in queue if job.live]
        backlog.settle(root, queue)
        left = left_alone(runs, live)
        todo = [run for run in runs if run.layout.path not in left]
        configs = [run.config for run in todo]
        dependencies = dependency.waits(configs, live)
        longer = _longer(todo)
        try:
            scripts = divide(todo, most_tasks(configs))
            frozen = freeze.freeze_all(todo)
            backlog.forget(root, todo)
            sender = Sender(scripts, frozen, queue, dependencies, argv)
            sender.send_all()
        except client.SlurmRefused as error:
            raise InputError(_refusal(first, error)) from None
    other_code = [run.layout for run in frozen if run.other_code]
    return Outcome(sender.jobs, left, sender.waiting, other_code, longer)


def _longer(runs: Sequence[PlannedRun]) -> list[str]:
    told = []
    for run in runs:
        longer = extension.of(run.config.optim, run.plan, run.layout)
        if longer is not None:
            step = newest_step(run.layout.checkpoints)
            told.append(f"{run.layout.name}: {longer.told(step)}")
    return told


def _alone(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """One submission at a time below a root."""
    root = identity.root_of(config)
    freeze.make_folder(root, config.run.group)
    return one_at_a_time(
        RootLayout(root).submit_lock, f"run.root={root}: another submission is under way"
    )


def require_sbatch() -> None:
    """InputError where Slurm's sbatch is not on PATH."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch is not on PATH: submit where Slurm is (a login node), or add dry_run=true "
            "for plan and script"
        )


def _refusal(config: RunConfig, error: client.SlurmError) -> str:
    return f"cluster={config.cluster.name}: {error}"
