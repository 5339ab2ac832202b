"""The scripts of one submission on their way to Slurm, one after another.

Where one is not accepted, what was made for it and for those after it is removed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout, SweepLayout
from hpc_llm.slurm import client
from hpc_llm.slurm.records import QueuedJob
from hpc_llm.submission import backlog, send
from hpc_llm.submission.arrays import JobScript


@dataclass(frozen=True)
class Job:
    """One accepted sbatch and its runs, with how Slurm calls each: `12`, or `12_3` in an array."""

    job_id: int
    name: str
    array: bool
    runs: dict[str, RunLayout]  # by address
    notes: tuple[str, ...]  # what sbatch said beside its number


class Sender:
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
        self._num_live = 0
        self._known: set[int] = set()
        for job in queue:
            self._num_live += job.live
            self._known.add(job.array_id)
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
        accepted = send.send(
            script.script,
            name=script.name,
            work_dir=script.work_dir,
            known=self._known,
            options=options,
        )
        number = accepted.job_id
        runs = {str(number): script.runs[0]}
        job = Job(number, script.name, False, runs, accepted.notes)
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
                for sent in backlog.fill(rest, self._known):
                    self.jobs.append(Job(sent.number, script.name, True, sent.runs, sent.notes))
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
