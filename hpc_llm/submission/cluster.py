"""Runs on a cluster: examine, freeze, render, submit, and back at the prompt."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import event_names, freeze
from hpc_llm.runs.layout import RootLayout, RunLayout, SweepLayout
from hpc_llm.runs.story import Story, read_story
from hpc_llm.slurm import client, own_jobs
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.slurm.site import most_tasks
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import one_at_a_time
from hpc_llm.submission import backlog, dependency, local, send
from hpc_llm.submission.arrays import JobScript, divide, of_job
from hpc_llm.submission.examine import examine_all

_SITE_KEYS = ("account", "partition", "qos", "constraint", "reservation")


@dataclass(frozen=True)
class Job:
    """One accepted sbatch and its runs, with how Slurm calls each: `12`, or `12_3` in an array."""

    job_id: int
    name: str
    array: bool
    runs: dict[str, RunLayout]  # by address


@dataclass(frozen=True)
class Outcome:
    """What a submission did, and which runs it left alone and why."""

    jobs: list[Job]
    left: dict[Path, str]
    waiting: list[backlog.Backlog]  # what Slurm has no room for yet
    other_code: list[RunLayout]  # runs that go on with another version than they had


def with_site_defaults(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """SBATCH_ACCOUNT and its like of the user's shell, as if given here: what holds is then frozen
    and can be seen.
    """
    given = {key: environment.get(f"SBATCH_{key.upper()}") for key in _SITE_KEYS}
    found: dict[str, Any] = {
        key: value for key, value in given.items() if value and getattr(config.cluster, key) is None
    }
    return (
        dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, **found))
        if found
        else config
    )


def estimates(configs: Sequence[RunConfig], plans: Sequence[RunPlan]) -> list[str]:
    """What Slurm would do with each job or array (`sbatch --test-only`); nothing is queued or
    written.
    """
    _require_sbatch()
    try:
        parts = divide(configs, plans, most_tasks(configs))
        return [f"{part.name}: {client.test_only(part.text)}" for part in parts]
    except client.SlurmRefused as error:
        raise InputError(_refusal(configs[0], error)) from None


def freeze_here(config: RunConfig, words: list[str]) -> RunLayout:
    """Freeze one run for the job that this process is in (or will be submitted by hand); its
    directory.
    """
    if config.run.depends_on is not None:
        raise InputError(
            "run.depends_on: a script written by hand waits by sbatch --dependency=afterok:JOB; "
            "leave it out"
        )
    restrict_access(config.run.group)
    examine_all([config])
    local.prepare([config])
    (plan,) = examine_all([config])
    address = client.own_address(os.environ) if "SLURM_JOB_ID" in os.environ else ""
    task = address.partition("_")[2]
    with _alone(config):
        part = of_job(config, plan, int(task) if task else None)
        layout = freeze.freeze(config, plan)
        part.write()
    if address:
        send.record_submitted({address: layout}, time.time(), words=words)
    return layout


def submit(configs: Sequence[RunConfig], words: list[str]) -> Outcome:
    """Freeze the runs and submit them, a sweep as arrays; those that are queued or complete are
    left alone.

    InputError with what the user can mend, in Slurm's words where they are Slurm's;
    SlurmUnavailable where Slurm does not answer. Then no run directory that this call made is left,
    but for what Slurm accepted, or may have.
    """
    _require_sbatch()
    restrict_access(configs[0].run.group)
    local.prepare(configs)
    plans = dict(zip(map(_place, configs), examine_all(configs), strict=True))
    with _alone(configs[0]):
        queue = client.queued()
        backlog.settle(freeze.root_of(configs[0]), queue)
        left = _left_alone(configs, [job for job in queue if job.live])
        todo = [config for config in configs if _place(config) not in left]
        waits = dependency.waits(todo, [job for job in queue if job.live])
        try:
            parts = divide(todo, [plans[_place(config)] for config in todo], most_tasks(todo))
            frozen = freeze.freeze_all([(config, plans[_place(config)]) for config in todo])
            backlog.forget(freeze.root_of(configs[0]), {_place(config) for config in todo})
            jobs, waiting = _send_all(parts, frozen, queue, words, waits)
            return Outcome(jobs, left, waiting, [run.layout for run in frozen if run.other_code])
        except client.SlurmRefused as error:
            raise InputError(_refusal(configs[0], error)) from None


def _alone(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """One submission at a time below a root."""
    root = freeze.root_of(config)
    freeze.make_folder(root, config.run.group)
    return one_at_a_time(
        RootLayout(root).submit_lock, f"run.root={root}: another submission is under way"
    )


def _left_alone(configs: Sequence[RunConfig], live: Sequence[QueuedJob]) -> dict[Path, str]:
    """The runs that must not be submitted (again), each with the reason."""
    by_address = {job.address: job for job in live}
    by_folder = {job.work_dir: job for job in live if "_" not in job.address}
    left: dict[Path, str] = {}
    noted: set[int] = set()
    for config in configs:
        layout = freeze.layout_for(config)
        if not layout.path.exists():
            continue
        story = read_story(layout.ledger)
        noted.update(int(address.partition("_")[0]) for address in story.jobs)
        known = (by_address[name] for name in reversed(story.jobs) if name in by_address)
        found = next(known, None)
        if job := found or by_folder.get(str(layout.code)):
            left[layout.path] = f"job {job.address} is {job.state}"
        elif story.completed:
            left[layout.path] = "complete"
        elif config.halving.rungs and (why := _halved(story)):
            left[layout.path] = f"stopped by halving: {why}"
    _refuse_lost_arrays(configs, live, noted)
    return left


def _halved(story: Story) -> str | None:
    """Why successive halving stopped the run, unless it was submitted again since."""
    names = (event_names.SUBMITTED, event_names.HALVED)
    last = next((event for event in reversed(story.events) if event.event in names), None)
    return str(last.facts["why"]) if last and last.event == event_names.HALVED else None


def _refuse_lost_arrays(
    configs: Sequence[RunConfig], live: Sequence[QueuedJob], noted: set[int]
) -> None:
    """An array whose acceptance never reached us is queued all the same: its runs must not go out
    twice.
    """
    folders = {
        str(freeze.layout_for(config).path.parent)
        for config in configs
        if config.run.sweep is not None
    }
    lost = {job.array_id: job for job in own_jobs.find(live, folders, known=noted)}
    known = {
        _array_of(run) for folder in folders if lost for run in SweepLayout(Path(folder)).runs()
    }
    for number, job in lost.items():
        if number not in known:
            raise InputError(
                f"run.sweep={configs[0].run.sweep}: array {number} of this sweep ({job.name}) is "
                "queued, though an earlier submit could not learn of it; wait for it, or scancel "
                f"{number} and submit again"
            )


def _array_of(run: RunLayout) -> int | None:
    jobs = read_story(run.ledger).jobs
    return int(jobs[-1].partition("_")[0]) if jobs else None


def _send_all(
    parts: Sequence[JobScript],
    frozen: Sequence[freeze.Frozen],
    queue: Sequence[QueuedJob],
    words: list[str],
    waits: Mapping[str | None, str],
) -> tuple[list[Job], list[backlog.Backlog]]:
    """Submit part after part; once Slurm has no room for more, the rest of a sweep waits.

    Where one is not accepted, what was made for it and those after it is removed.
    """
    made = {run.layout.path: run for run in frozen}
    jobs = list[Job]()
    waiting = list[backlog.Backlog]()
    for position, part in enumerate(parts):
        before = len(jobs)
        try:
            with _signals_later():
                part.write()
                jobs.extend(
                    _sent(
                        part,
                        {job.array_id for job in queue},
                        waits[part.depends_on],
                        words,
                        waiting,
                    )
                )
                part.link()
        except BaseException as error:
            if not isinstance(
                error, send.MaybeQueued
            ):  # then the job may be there, and it needs its folders
                _undo(parts[position + (len(jobs) > before) :], made)
            if jobs and isinstance(error, (client.SlurmError, OSError)):
                kind = (
                    type(error) if isinstance(error, client.SlurmError) else send.QueuedNotRecorded
                )
                accepted = ", ".join(str(job.job_id) for job in jobs)
                raise kind(
                    f"{error}; submitted before: {accepted}; the same words submit the rest"
                ) from None
            raise
    live = sum(job.live for job in queue) + sum(len(job.runs) for job in jobs)
    for rest in waiting:
        backlog.wait(rest, live)
    return jobs, waiting


def _sent(
    part: JobScript,
    known: set[int],
    dependency: str,
    words: list[str],
    waiting: list[backlog.Backlog],
) -> Iterator[Job]:
    """The jobs that Slurm makes of a part, noted in their runs' ledgers; what it has no room for
    joins `waiting`.
    """
    if not part.array:
        options = [f"--dependency={dependency}"] if dependency else []
        sent_at = time.time()
        number = send.send(
            part.script, name=part.name, work_dir=part.work_dir, known=known, options=options
        )
        job = Job(number, part.name, False, {str(number): part.runs[0]})
        with send.recording(number):
            send.record_submitted(job.runs, sent_at, words=words)
        yield job
        return
    tasks = {index: str(run.path) for index, run in enumerate(part.runs)}
    rest = backlog.Backlog(str(part.script), part.name, tasks, part.throttle, dependency, words)
    if waiting:
        rest.why = waiting[0].why
    else:
        try:
            for number, runs in backlog.fill(rest, known):
                yield Job(number, part.name, True, runs)
        except send.QueuedNotRecorded:
            raise  # `rest` knows what was sent
        except BaseException:
            rest.path.unlink(missing_ok=True)  # the same words submit the rest
            raise
    if rest.tasks:
        waiting.append(rest)


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Ctrl-C, or the end of an ssh connection, counts once the job is noted in the run's ledger."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for got in came:
        signal.raise_signal(got)


def _undo(parts: Sequence[JobScript], made: Mapping[Path, freeze.Frozen]) -> None:
    for part in parts:
        freeze.discard(made[run.path] for run in part.runs)
        if not part.array:
            continue
        part.script.unlink(missing_ok=True)
        folder = SweepLayout(part.work_dir)
        if not folder.runs() and not folder.script(1).exists():
            shutil.rmtree(folder.path, ignore_errors=True)


def _place(config: RunConfig) -> Path:
    return freeze.layout_for(config).path


def _require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch is not on PATH: submit where Slurm is (a login node), or add dry_run=true "
            "for plan and script"
        )


def _refusal(config: RunConfig, error: client.SlurmError) -> str:
    return f"cluster={config.cluster.name}: {error}"
