"""Arms as processes that take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import psutil
import record

ARMS = {  # name → (what arms.py runs, words beside BASE)
    "bare": ("bare", []),
    "deepspeed": ("deepspeed", []),
    "ours": ("ours", []),
    "deepspeed, FusedAdam": ("deepspeed", ["optim=fused_adam"]),
    "ours, FusedAdam": ("ours", ["optim=fused_adam"]),
    "ours, compiled": ("ours", ["train.compile=true"]),
    "transformers": ("transformers", []),
    "transformers, compiled": ("transformers-compiled", []),
    "transformers, Trainer": ("transformers-trainer", []),
    "transformers, DeepSpeed": ("transformers-deepspeed", []),
    "transformers, memory kept": ("transformers+kept", []),
    "transformers, compiled, memory kept": ("transformers-compiled+kept", []),
}
BASE = "optim=torch_adam"
TURNS_TRIED = 4  # times the turns that are wanted, before a round makes do with busy ones


def arm_of(name: str) -> tuple[str, list[str]]:
    """What arms.py runs, and with which words. "ours: optim=muon train.compile=true" is ours with those."""
    known, _, given = name.partition(":")
    arm, more = ARMS[known]
    words = {word.partition("=")[0]: word for word in [BASE, *more, *given.split()]}
    return arm, list(words.values())


@dataclass
class Runner:
    """One arm's process."""

    process: subprocess.Popen[str]
    errors: IO[str]
    steps_s: list[float] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, words: list[str], arguments: argparse.Namespace, alive: bool = False) -> Runner:
        arm, more = arm_of(name)
        case = {
            "arm": arm,
            "words": [*words, *more],
            "device": arguments.device,
            "clock": arguments.clock,
            "warmup": arguments.warmup,
            "turn_steps": arguments.turn_steps,
            "most_turns": arguments.turns * TURNS_TRIED,
            "alive": alive,
        }
        threads = {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
        command = [sys.executable, str(Path(__file__).with_name("arms.py")), json.dumps(case)]
        return cls.of(command, {**threads, "PYTHONPATH": str(record.ROOT)})

    @classmethod
    def of(cls, command: list[str], environment: dict[str, str]) -> Runner:
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 – as long as the process
        process = subprocess.Popen(
            command,
            cwd=record.ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        return cls(process, errors)

    def turn(self) -> tuple[list[float], float]:
        """Seconds of the steps of one turn, and the share of the cores that others took meanwhile."""
        busy = others(psutil.Process(self.process.pid))
        self.say("go")
        return self.read("@turn"), busy()

    def stop(self) -> None:
        self.say("stop")
        self.result = self.read("@result")
        self.process.communicate()

    def pause(self) -> None:
        """Its workers too: what a library reads ahead of its next turn would slow the others' down."""
        for process in self._family():
            process.suspend()

    def go_on(self) -> None:
        for process in self._family():
            process.resume()

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def read(self, mark: str) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(mark):
                return json.loads(line.removeprefix(mark))
        self.errors.seek(0)
        sys.exit(f"an arm failed:\n{self.errors.read()}")


def others(process: psutil.Process) -> Callable[[], float]:
    """Call the result later: the share of all cores that anything but `process` took from now to then."""

    def used() -> tuple[float, float]:
        times, own = psutil.cpu_times(), process.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times[:8]) - idle - own.user - own.system, sum(times[:8])

    before = used()
    return lambda: max(0.0, used()[0] - before[0]) / max(0.01, used()[1] - before[1])


def wait_for_quiet(share: float, patience_s: float) -> None:
    """Until the cores are less busy than `share` for a second, but no longer than patience. The arms wait too."""
    deadline = time.monotonic() + patience_s
    while psutil.cpu_percent(interval=1.0) / 100 > share and time.monotonic() < deadline:
        pass


@dataclass
class Round:
    """What the arms' processes of one round measured, by arm."""

    step_s: dict[str, float]  # median
    fastest_s: dict[str, float]
    results: dict[str, dict[str, Any]]
    others: float
    turns_taken: int


def one_round(words: list[str], arms: list[str], number: int, arguments: argparse.Namespace) -> Round:
    if arguments.alone:
        return _one_after_the_other(words, arms, number, arguments)
    runners = {name: Runner.start(name, words, arguments) for name in arms}
    for runner in runners.values():
        runner.read("@turn")  # everything is built
    for runner in runners.values():
        runner.turn()  # warm-up
    kept, worst, taken = 0, 0.0, 0
    while kept < arguments.turns:
        wait_for_quiet(arguments.max_others, arguments.patience)
        turns, busiest = {}, 0.0
        first = (number + taken) % len(arms)
        for name in arms[first:] + arms[:first]:
            turns[name], share = runners[name].turn()
            busiest = max(busiest, share)
        taken += 1
        if busiest > arguments.max_others and arguments.turns * TURNS_TRIED - taken > arguments.turns - kept:
            continue
        kept, worst = kept + 1, max(worst, busiest)
        for name, seconds in turns.items():
            runners[name].steps_s += seconds
    for runner in runners.values():
        runner.stop()
    return _round(runners, worst, taken)


def _one_after_the_other(words: list[str], arms: list[str], number: int, arguments: argparse.Namespace) -> Round:
    """Each arm takes all its turns before the next one starts: for models of which a GPU holds one at a time."""
    runners, worst = dict[str, Runner](), 0.0
    first = number % len(arms)
    for name in arms[first:] + arms[:first]:
        wait_for_quiet(arguments.max_others, arguments.patience)
        runner = runners[name] = Runner.start(name, words, arguments)
        runner.read("@turn")
        runner.turn()
        for _ in range(arguments.turns):
            seconds, share = runner.turn()
            runner.steps_s += seconds
            worst = max(worst, share)
        runner.stop()
    return _round(runners, worst, arguments.turns)


def _round(runners: dict[str, Runner], worst: float, taken: int) -> Round:
    return Round(
        {name: median(runner.steps_s) for name, runner in runners.items()},
        {name: min(runner.steps_s) for name, runner in runners.items()},
        {name: runner.result for name, runner in runners.items()},
        worst,
        taken,
    )
