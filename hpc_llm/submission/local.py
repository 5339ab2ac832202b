"""A run on this machine, in the foreground: prepare, build, freeze, supervise, show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

from hpc_llm.checkpoint import manifest
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import attempts, event_names, extension, freeze, ledger, orders
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import is_held
from hpc_llm.submission import dependency, prerequisites
from hpc_llm.submission.examine import examine_again
from hpc_llm.submission.live import Show
from hpc_llm.supervise import supervisor

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.2


def run(planned: PlannedRun, argv: list[str]) -> int:
    """Train the run to its end and show it; the exit status.

    InputError as `examine_again`, or on a login node.
    """
    config = planned.config
    layout = planned.layout
    refuse_login_node(config)
    restrict_access(config.run.group)
    prerequisites.prepare_data(config)
    (planned,) = examine_again([planned])
    dependency.require_complete(config)
    if is_held(layout.lock):
        print(f"{layout.path}: {attempts.TRAINED_ELSEWHERE}", file=sys.stderr)
        return 1
    longer = extension.of(config.optim, planned.plan, layout)
    (frozen,) = freeze.freeze_all([planned])
    if frozen.other_code:
        print(f"{layout.name}: {freeze.OTHER_CODE}")
    record_begun(layout, argv)
    show = Show(layout, planned.plan)
    if show.complete():
        print(f"{layout.path} is complete: nothing left to train")
        show.summary()
        return 0
    prerequisites.build(config)
    show.header(config)
    if longer is not None:
        print(f"{layout.name}: {longer.told(manifest.newest_step(layout.checkpoints))}")
    status = _supervise(layout, show)
    if status == supervisor.BUSY:
        return 1
    show.ending(status, argv)
    return 130 if status == ExitCode.STOPPED else status


def record_begun(layout: RunLayout, argv: list[str]) -> None:
    """Write into the run's ledger that its user began it, or had it go on, with these words."""
    facts = {
        "words": argv,
        "host": os.uname().nodename,
        "after_attempt": attempts.newest(layout),
        "steps": extension.planned_steps(layout),
    }
    ledger.Ledger(layout.ledger, "submit").write(
        event_names.SUBMITTED, **facts, code=layout.code_hash()
    )


def refuse_login_node(config: RunConfig) -> None:
    """InputError where this is a cluster's login node and nobody said local=true."""
    if shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ and not config.local:
        raise InputError(
            "cluster=local: sbatch is on PATH and this is no job: a login node is not for "
            "training; add +cluster=NAME to submit, or local=true to run here all the same"
        )


def supervise(layout: RunLayout) -> subprocess.Popen[bytes]:
    """Start the run's supervisor, which ends with this process."""
    command = [sys.executable, "-m", "hpc_llm.supervise", str(layout.path)]
    environment = {**os.environ, orders.PARENT: str(os.getpid())}
    return subprocess.Popen(command, cwd=layout.code, env=environment, start_new_session=True)


def as_passed_on(number: int) -> int:
    """The signal that a supervisor, which no terminal reaches, gets for one of ours.

    A second Ctrl-C must stay one.
    """
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


def _supervise(layout: RunLayout, show: Show) -> int:
    """Start the supervisor, pass signals on, show progress; the run's exit status."""
    child = supervise(layout)

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(as_passed_on(number))
        show.stopping = True

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    with show:
        while True:
            try:
                return child.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                show.update()
