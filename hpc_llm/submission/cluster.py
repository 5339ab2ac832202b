"""Runs on a cluster: freeze, render, submit, and back at the prompt."""

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
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RootLayout, RunLayout, SweepLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.slurm import client
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.slurm.site import most_tasks
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import one_at_a_time
from hpc_llm.submission import backlog, dependency, prerequisites, send
from hpc_llm.submission.arrays import JobScript, divide, of_job
from hpc_llm.submission.examine import examine, examine_again
from hpc_llm.submission.left_alone import left_alone

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
    """SBATCH_ACCOUNT and its like of the user's shell, as if they had been given as keys.

    So what holds is frozen and can be seen.
    """
    defaults: dict[str, Any] = {}
    for key in _SITE_KEYS:
        value = environment.get(f"SBATCH_{key.upper()}")
        if value and getattr(config.cluster, key) is None:
            defaults[key] = value
    if not defaults:
        return config
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, **defaults))


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
    root = freeze.root_of(first)
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
        try:
            scripts = divide(todo, most_tasks(configs))
            frozen = freeze.freeze_all(todo)
            backlog.forget(root, {run.layout.path for run in todo})
            sending = _Sending(scripts, frozen, queue, dependencies, argv)
            sending.send_all()
        except client.SlurmRefused as error:
            raise InputError(_refusal(first, error)) from None
    other_code = [run.layout for run in frozen if run.other_code]
    return Outcome(sending.jobs, left, sending.waiting, other_code)


def _alone(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """One submission at a time below a root."""
    root = freeze.root_of(config)
    freeze.make_folder(root, config.run.group)
    return one_at_a_time(
        RootLayout(root).submit_lock, f"run.root={root}: another submission is under way"
    )


class _Sending:
    """Scripts on their way to Slurm, and what has become of them."""

    def __init__(
        self,
        scripts: Sequence[JobScript],
        frozen: Sequence[freeze.Frozen],
        queue: Sequence[QueuedJob],
        dependencies: Mapping[str | None, str],
        argv: list[str],
    ) -> None:
        self.jobs: list[Job] = []
        self.waiting: list[backlog.Backlog] = []
        self._scripts = scripts
        self._frozen = {run.layout.path: run for run in frozen}
        self._num_live = sum(job.live for job in queue)
        self._known = {job.array_id for job in queue}
        self._dependencies = dependencies
        self._argv = argv

    def send_all(self) -> None:
        """Submit script after script; once Slurm has no room for more, the rest of a sweep waits.

        Where one is not accepted, what was made for it and those after it is removed.
        """
        for position, script in enumerate(self._scripts):
            num_before = len(self.jobs)
            try:
                with _signals_later():
                    script.write()
                    self._send(script)
                    script.link()
            except BaseException as error:
                accepted = len(self.jobs) > num_before
                if not isinstance(error, send.MaybeQueued):
                    self._undo(self._scripts[position + accepted :])
                # else the job may be there, and it needs its folders
                if self.jobs and isinstance(error, (client.SlurmError, OSError)):
                    raise self._partly_submitted(error) from None
                raise
        num_live = self._num_live + sum(len(job.runs) for job in self.jobs)
        for rest in self.waiting:
            backlog.wait(rest, num_live)

    def _send(self, script: JobScript) -> None:
        """Submit a script, and record the jobs that Slurm makes of it in their runs' ledgers."""
        if script.array:
            self._send_array(script)
        else:
            self._send_single(script)

    def _send_single(self, script: JobScript) -> None:
        depends_on = self._dependencies[script.depends_on]
        options = [f"--dependency={depends_on}"] if depends_on else []
        sent_at = time.time()
        number = send.send(
            script.script,
            name=script.name,
            work_dir=script.work_dir,
            known=self._known,
            options=options,
        )
        job = Job(number, script.name, False, {str(number): script.runs[0]})
        with send.recording(number):
            send.record_submitted(job.runs, sent_at, words=self._argv)
        self.jobs.append(job)

    def _send_array(self, script: JobScript) -> None:
        """Submit as many of an array's runs as there is room for; the others join `waiting`."""
        rest = backlog.Backlog(
            str(script.script),
            script.name,
            tasks={index: str(run.path) for index, run in enumerate(script.runs)},
            throttle=script.throttle,
            dependency=self._dependencies[script.depends_on],
            words=self._argv,
        )
        if self.waiting:
            rest.why = self.waiting[0].why
        else:
            try:
                for number, runs in backlog.fill(rest, self._known):
                    self.jobs.append(Job(number, script.name, True, runs))
            except send.QueuedNotRecorded:
                raise  # `rest` knows what was sent
            except BaseException:
                rest.path.unlink(missing_ok=True)  # the same words submit the rest
                raise
        if rest.tasks:
            self.waiting.append(rest)

    def _partly_submitted(self, error: client.SlurmError | OSError) -> client.SlurmError:
        accepted = ", ".join(str(job.job_id) for job in self.jobs)
        message = f"{error}; submitted before: {accepted}; the same words submit the rest"
        if isinstance(error, client.SlurmError):
            return type(error)(message)
        return send.QueuedNotRecorded(message)

    def _undo(self, scripts: Sequence[JobScript]) -> None:
        """Remove what was made for scripts that Slurm does not have."""
        for script in scripts:
            freeze.discard(self._frozen[run.path] for run in script.runs)
            if not script.array:
                continue
            script.script.unlink(missing_ok=True)
            folder = SweepLayout(script.work_dir)
            if not folder.runs() and not folder.script(1).exists():
                shutil.rmtree(folder.path, ignore_errors=True)


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Ctrl-C, or the end of an ssh connection, counts once the job is in the run's ledger."""
    arrived: list[int] = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handlers[number] = signal.signal(number, lambda got, _: arrived.append(got))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for got in arrived:
        signal.raise_signal(got)


def require_sbatch() -> None:
    """InputError where Slurm's sbatch is not on PATH."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch is not on PATH: submit where Slurm is (a login node), or add dry_run=true "
            "for plan and script"
        )


def _refusal(config: RunConfig, error: client.SlurmError) -> str:
    return f"cluster={config.cluster.name}: {error}"
