"""A run on this machine, in the foreground: prepare, build, freeze, supervise, show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.launch import chain, show_preparation, supervisor
from hpc_llm.launch.show import Show
from hpc_llm.launch.submission import examine
from hpc_llm.recovery.causes import ExitCode
from hpc_llm.runs import attempts, freeze, ledger, lock
from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage import operators
from hpc_llm.storage.files import restrict_access

_POLL_S = 0.2


def run(config: RunConfig, words: list[str]) -> int:
    """Run `config` to its end and show it; the exit status. InputError as `examine`, or on a login node."""
    refuse_login_node(config)
    restrict_access(config.run.group)
    prepare_data(config)
    plan = examine(config)
    chain.require_complete(config)
    layout = freeze.layout_for(config)
    if lock.held(layout):
        print(f"{layout.path}: {lock.HELD}", file=sys.stderr)
        return 1
    (frozen,) = freeze.freeze_all([(config, plan)])
    if frozen.other_code:
        print(f"{layout.name}: {freeze.OTHER_CODE}")
    note(layout, words)
    show = Show(layout, plan)
    if show.complete():
        print(f"{layout.path} is complete: nothing left to train")
        show.summary()
        return 0
    build(config)
    show.header(config)
    status = _supervise(layout, show)
    if status == supervisor.BUSY:
        return 1
    show.ending(status, words)
    return 130 if status == ExitCode.STOPPED else status


def note(layout: RunLayout, words: list[str]) -> None:
    """Write into the run's ledger that its user began it, or had it go on, with these words."""
    facts = {"words": words, "host": os.uname().nodename, "after_attempt": attempts.newest(layout)}
    ledger.Ledger(layout.ledger, "submit").write("submitted", **facts, code=layout.code_hash())


def refuse_login_node(config: RunConfig) -> None:
    """InputError where this is a cluster's login node and nobody said local=true."""
    if shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ and not config.local:
        raise InputError(
            "cluster=local: sbatch is on PATH and this is no job: a login node is not for training; "
            "add +cluster=NAME to submit, or local=true to run here all the same"
        )


def prepare(configs: Sequence[RunConfig]) -> None:
    """Data that prepares itself, and operators for CPUs: once for all runs that share them."""
    for config in {_data_of(config): config for config in configs}.values():
        prepare_data(config)
    for config in {config.optim.name: config for config in configs if config.cluster.device == "cpu"}.values():
        build(config)


def _data_of(config: RunConfig) -> tuple[Path, str, int]:
    """What runs that share it need to have prepared once."""
    from hpc_llm.data.manifest import directory_for

    return directory_for(config), config.data.packing, config.train.seq_len


def prepare_data(config: RunConfig) -> None:
    """Data that prepares itself; other data is packed where the run wants that and nobody has done it yet."""
    from hpc_llm.data.manifest import MANIFEST, directory_for

    directory = directory_for(config)
    if config.data.name == "stdlib":
        show_preparation.prepare_shown(config, directory)
    elif (directory / MANIFEST).exists():
        show_preparation.pack_shown(config, directory)


def build(config: RunConfig) -> None:
    """Compile what the optimizer needs, once, in a process of its own: this one never imports torch."""
    operator = operators.needed(config.optim.name, "cpu")
    if operator is None or (
        config.cluster.device == "cpu" and operators.library(operator, operators.cpu_architecture()).exists()
    ):
        return
    words = [sys.executable, "-m", "hpc_llm.build", "--quiet", config.optim.name, config.cluster.device]
    subprocess.run(words, check=False)


def supervise(layout: RunLayout) -> subprocess.Popen[bytes]:
    """The run's supervisor, which ends with this process."""
    command = [sys.executable, "-m", "hpc_llm.launch.supervisor", str(layout.path)]
    environment = {**os.environ, "HPC_LLM_PARENT": str(os.getpid())}
    return subprocess.Popen(command, cwd=layout.code, env=environment, start_new_session=True)


def as_passed_on(number: int) -> int:
    """The signal that a supervisor, which no terminal reaches, gets for one of ours: a second Ctrl-C must stay one."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


def _supervise(layout: RunLayout, show: Show) -> int:
    """Start the supervisor, pass signals on, show progress; the run's exit status."""
    child = supervise(layout)

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(as_passed_on(number))
        show.stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    with show:
        while True:
            try:
                return child.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                show.update()
