"""A run on this machine, in the foreground: prepare, build, freeze, supervise, show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.preparation import progress
from hpc_llm.runs import attempts, event_names, freeze, ledger, orders
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.storage import operators
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.locks import is_held
from hpc_llm.submission import dependency
from hpc_llm.submission.examine import examine, examine_all
from hpc_llm.submission.live import Show
from hpc_llm.supervise import supervisor

_POLL_S = 0.2


def run(config: RunConfig, words: list[str]) -> int:
    """Run `config` to its end and show it; the exit status. InputError as `examine`, or on a login
    node.
    """
    refuse_login_node(config)
    restrict_access(config.run.group)
    prepare_data(config)
    plan = examine(config)
    dependency.require_complete(config)
    layout = freeze.layout_for(config)
    if is_held(layout.lock):
        print(f"{layout.path}: {attempts.TRAINED_ELSEWHERE}", file=sys.stderr)
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


def prepare(configs: Sequence[RunConfig]) -> None:
    """Data that prepares itself, and operators for CPUs: once for all runs that share them."""
    for config in {_data_of(config): config for config in configs}.values():
        prepare_data(config)
    for config in {
        config.optim.name: config for config in configs if config.cluster.device == "cpu"
    }.values():
        build(config)


def _data_of(config: RunConfig) -> tuple[Path, str, int]:
    """What runs that share it need to have prepared once."""
    from hpc_llm.data.manifest import directory_for

    return directory_for(config), config.data.packing, config.train.seq_len


def prepare_data(config: RunConfig) -> None:
    """Data that prepares itself; other data is packed where the run wants that and nobody has done
    it yet.
    """
    from hpc_llm.data.manifest import MANIFEST, directory_for

    directory = directory_for(config)
    if config.data.name == "stdlib":
        progress.prepare_shown(config, directory)
    elif (directory / MANIFEST).exists():
        progress.pack_shown(config, directory)


def build(config: RunConfig) -> None:
    """Compile what the optimizer needs, once, in a process of its own: this one never imports
    torch.
    """
    operator = operators.needed(config.optim.name, "cpu")
    if operator is None or (
        config.cluster.device == "cpu"
        and operators.library(operator, operators.cpu_architecture()).exists()
    ):
        return
    words = [
        sys.executable,
        "-m",
        "hpc_llm.build",
        "--quiet",
        config.optim.name,
        config.cluster.device,
    ]
    subprocess.run(words, check=False)


def supervise(layout: RunLayout) -> subprocess.Popen[bytes]:
    """The run's supervisor, which ends with this process."""
    command = [sys.executable, "-m", "hpc_llm.supervise", str(layout.path)]
    environment = {**os.environ, orders.PARENT: str(os.getpid())}
    return subprocess.Popen(command, cwd=layout.code, env=environment, start_new_session=True)


def as_passed_on(number: int) -> int:
    """The signal that a supervisor, which no terminal reaches, gets for one of ours: a second
    Ctrl-C must stay one.
    """
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


# -- The runs of a sweep on this machine, cluster.array_throttle at once: frozen together, each with
# its supervisor.


_SWEEP_POLL_S = 0.2

Start = Callable[[RunLayout], "subprocess.Popen[bytes]"]


def run_sweep(configs: Sequence[RunConfig], words: list[str]) -> int:
    """All of them to their end; those that are complete are left alone, and one that fails stops no
    other.

    Exit status: 0 all complete, 1 some failed, 130 stopped. InputError as for a single run, before
    any has begun.
    """
    refuse_login_node(configs[0])
    restrict_access(configs[0].run.group)
    prepare(configs)
    plans = examine_all(configs)
    for config in configs:
        dependency.require_complete(config)
    layouts = [freeze.layout_for(config) for config in configs]
    busy = [layout for layout in layouts if is_held(layout.lock)]
    for layout in busy:
        _say(f"{layout.name}: {attempts.TRAINED_ELSEWHERE}")
    pairs = zip(configs, plans, layouts, strict=True)
    frozen = freeze.freeze_all(
        [(config, plan) for config, plan, layout in pairs if layout not in busy]
    )
    for run in frozen:
        if run.other_code and not dependency.complete(run.layout):
            _say(f"{run.layout.name}: {freeze.OTHER_CODE}")
    todo = [layout for layout in layouts if layout not in busy and not dependency.complete(layout)]
    for layout in todo:
        note(layout, words)
    for config in {config.optim.name: config for config in configs}.values():
        build(config)  # once, before several ranks would
    at_once = configs[0].cluster.array_throttle or 1
    _say(
        f"{len(todo)} of {len(layouts)} runs to do, {at_once} at once, in {layouts[0].path.parent}"
    )
    return _Crew(todo, at_once, supervise).work()


class _Crew:
    """Supervisors at work. A stop signal reaches all that run, and none begins after it."""

    def __init__(self, todo: Sequence[RunLayout], at_once: int, start: Start) -> None:
        self._todo = deque(todo)
        self._at_once = at_once
        self._start = start
        self._running: dict[subprocess.Popen[bytes], RunLayout] = {}
        self._asked: list[
            int
        ] = []  # stop signals; a second Ctrl-C makes a supervisor leave at once
        self._passed_on = 0

    def work(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda got, _: self._asked.append(got))
        statuses = []
        while self._running or (self._todo and not self._asked):
            while self._todo and len(self._running) < self._at_once and not self._asked:
                layout = self._todo.popleft()
                self._running[self._start(layout)] = layout
                _say(f"{layout.name}: started")
            self._pass_on()
            statuses += self._ended()
            time.sleep(_SWEEP_POLL_S)
        if self._asked:
            return 130
        return 1 if any(statuses) else 0

    def _pass_on(self) -> None:
        """Here and not in the handler, which may come while a child is started and not yet
        known.
        """
        for number in self._asked[self._passed_on :]:
            self._passed_on += 1
            for child in self._running:
                child.send_signal(as_passed_on(number))

    def _ended(self) -> list[int]:
        """Exit statuses of those that have left since the last look."""
        gone = [child for child in self._running if child.poll() is not None]
        for child in gone:
            layout = self._running.pop(child)
            word = {0: "complete", ExitCode.STOPPED: "stopped"}.get(child.returncode, "failed")
            _say(
                f"{layout.name}: {word}"
                + (
                    f"; python -m hpc_llm.status {layout.path} --logs says why"
                    if word == "failed"
                    else ""
                )
            )
        return [child.returncode for child in gone]


def _say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
