"""Arms as processes that take turns, so that whatever else the machine does meets all of them
alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any, TypeVar

import psutil
import record

from hpc_llm.storage.locks import locked
from hpc_llm.training import allocator

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
    "transformers, compiled, DeepSpeed": ("transformers-deepspeed-compiled", []),
    "transformers, memory kept": ("transformers+kept", []),
    "transformers, compiled, memory kept": ("transformers-compiled+kept", []),
}
BASE = "optim=torch_adam"
TURNS_TRIED = 4  # times the turns that are wanted, before a round makes do with busy ones


def arm_of(name: str) -> tuple[str, list[str]]:
    """What arms.py runs, and with which words. "ours: optim=muon train.compile=true" is ours with
    those.
    """
    known, _, given = name.partition(":")
    arm, more = ARMS[known]
    words = {word.partition("=")[0]: word for word in [BASE, *more, *given.split()]}
    return arm, list(words.values())


class ArmFailed(SystemExit):
    """An arm's process ended early; whoever does without it catches this."""

    @property
    def why(self) -> str:
        """In a line: the last that names an error."""
        lines = str(self).strip().splitlines()
        return next((line for line in reversed(lines) if "Error" in line), lines[-1])[:200]


@dataclass
class Runner:
    """One arm's process."""

    process: subprocess.Popen[str]
    errors: IO[str]
    result: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, name: str, words: list[str], arguments: argparse.Namespace, alive: bool = False
    ) -> Runner:
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
        threads = {
            "OMP_NUM_THREADS": str(arguments.threads),
            "MKL_NUM_THREADS": str(arguments.threads),
        }
        command = [sys.executable, str(Path(__file__).with_name("arms.py")), json.dumps(case)]
        as_ours = arguments.device == "cpu" and (
            arm.endswith("+kept") or not arm.startswith("transformers")
        )
        malloc = allocator.environment(os.environ, allocator.library()) if as_ours else {}
        return cls.of(command, {**threads, **malloc, "PYTHONPATH": record.python_path()})

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

    def build(self) -> None:
        """Begin to take memory of the device."""
        self.read("@ready")
        self.say("build")

    def turn(self) -> tuple[list[float], float]:
        """Seconds of the steps of one turn, and the share of the cores that others took
        meanwhile.
        """
        busy = others(psutil.Process(self.process.pid))
        self.say("go")
        return self.read("@turn"), busy()

    def stop(self) -> None:
        self.say("stop")
        self.result = self.read("@result")
        self.process.communicate()

    def pause(self) -> None:
        """Its workers too: what a library reads ahead of its next turn would slow the others'
        down.
        """
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
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def read(self, mark: str) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(mark):
                return json.loads(line.removeprefix(mark))
        raise self.failure()

    def failure(self) -> ArmFailed:
        self.process.wait()
        self.errors.seek(0)
        return ArmFailed(f"an arm failed:\n{self.errors.read()}")


def others(process: psutil.Process) -> Callable[[], float]:
    """Call the result later: the share of all cores that anything but `process` took from now to
    then.
    """

    def used() -> tuple[float, float]:
        times = psutil.cpu_times()
        own = process.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times[:8]) - idle - own.user - own.system, sum(times[:8])

    before = used()
    return lambda: max(0.0, used()[0] - before[0]) / max(0.01, used()[1] - before[1])


def wait_for_quiet(share: float, patience_s: float) -> None:
    """Until the cores are less busy than `share` for a second, but no longer than patience. The
    arms wait too.
    """
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
    failed: dict[str, str]  # why arms could not be measured

    @classmethod
    def of(
        cls,
        runners: dict[str, Runner],
        steps_s: dict[str, list[float]],
        others: float,
        turns: int,
        failed: dict[str, str],
    ) -> Round:
        return cls(
            {name: median(steps) for name, steps in steps_s.items()},
            {name: min(steps) for name, steps in steps_s.items()},
            {name: runners[name].result for name in steps_s},
            others,
            turns,
            dict(failed),
        )


def in_turns(
    words: list[str], arms: list[str], number: int, arguments: argparse.Namespace
) -> Iterator[Round]:
    """Round `number` (from 0), with all arms' processes there at once."""
    runners = {name: Runner.start(name, words, arguments) for name in arms}
    failed = dict[str, str]()
    for_each(arms, failed, lambda name: runners[name].build())
    for_each(arms, failed, lambda name: runners[name].read("@turn"))  # everything is built
    for_each(arms, failed, lambda name: runners[name].turn())  # warm-up
    steps_s: dict[str, list[float]] = {name: [] for name in arms}
    kept = 0
    worst = 0.0
    taken = 0
    while kept < arguments.turns and len(failed) < len(arms):
        wait_for_quiet(arguments.max_others, arguments.patience)
        first = (number + taken) % len(arms)
        turns = for_each(arms[first:] + arms[:first], failed, lambda name: runners[name].turn())
        busiest = max((share for _, share in turns.values()), default=0.0)
        taken += 1
        if (
            busiest > arguments.max_others
            and arguments.turns * TURNS_TRIED - taken > arguments.turns - kept
        ):
            continue
        kept = kept + 1
        worst = max(worst, busiest)
        for name, (seconds, _) in turns.items():
            steps_s[name] += seconds
    for_each(arms, failed, lambda name: runners[name].stop())
    yield Round.of(
        runners, {name: steps_s[name] for name in arms if name not in failed}, worst, taken, failed
    )


def one_at_a_time(
    words: list[str], arms: list[str], number: int, arguments: argparse.Namespace
) -> Iterator[Round]:
    """Round `number` (from 0), as far as it is after each arm: each takes its turns before the next
    one is built.

    For models of which a GPU holds one at a time.
    """
    order = arms[number % len(arms) :] + arms[: number % len(arms)]
    runners = {name: Runner.start(name, words, arguments) for name in order}
    failed = dict[str, str]()
    for_each(
        order, failed, lambda name: runners[name].read("@ready")
    )  # what imports take of the cores is over
    steps_s = dict[str, list[float]]()
    worst = 0.0

    def alone(name: str) -> list[tuple[list[float], float]]:
        runner = runners[name]
        with locked(Path(arguments.lock)) if arguments.lock else contextlib.nullcontext():
            runner.say("build")
            runner.read("@turn")
            runner.turn()  # warm-up
            turns = [runner.turn() for _ in range(arguments.turns)]
            runner.stop()
        return turns

    for each in order:
        for name, turns in for_each([each], failed, alone).items():
            steps_s[name] = [second for seconds, _ in turns for second in seconds]
            worst = max(worst, *(share for _, share in turns))
            print(name, f"{1e3 * median(steps_s[name]):.1f} ms", flush=True)
        yield Round.of(runners, steps_s, worst, arguments.turns, failed)


T = TypeVar("T")


def for_each(names: list[str], failed: dict[str, str], do: Callable[[str], T]) -> dict[str, T]:
    """What `do` gives for every arm that has not failed. Which fail now, and why, is put down in
    `failed`.
    """
    found = {}
    for name in names:
        if name not in failed:
            try:
                found[name] = do(name)
            except ArmFailed as failure:
                failed[name] = failure.why
                print(name, failure, sep="\n", flush=True)
    return found
