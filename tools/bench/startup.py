"""How long a user waits for a dry run: whole processes, interleaved, appended to
benchmarks/startup.md.

`python tools/bench/startup.py [--rounds N] [--quick]`
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import record

DRY_RUN = ["-m", "hpc_llm.submit", "+cluster=a100x64", "model=mpt-7b", "dry_run=true"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -m hpc_llm.plan": ["-m", "hpc_llm.plan"],
    "python " + " ".join(DRY_RUN): DRY_RUN,
}
TARGET_S = 1.0
HEAVY = ("torch", "deepspeed", "sentencepiece", "tensorboard", "rich")
INTRODUCTION = f"""
# Start-up

A dry run from the shell's point of view: seconds of whole processes, standard output thrown away. The commands take
turns, round by round. "First" is the process that finds no byte code cached, as after an installation; the rounds
find it. The dry run is meant to stay below {TARGET_S:.1f} s and not to import torch, which `-X importtime` tells.

Written by `tools/bench/startup.py`; sections are only ever added.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "startup.md")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds

    with tempfile.TemporaryDirectory() as cache:
        first = {
            name: seconds(words, caching(f"{cache}/{number}"))
            for number, (name, words) in enumerate(COMMANDS.items())
        }
        environment = caching(f"{cache}/{len(COMMANDS) - 1}")
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        loads = []
        for _ in range(rounds):
            loads.append(os.getloadavg()[0])
            for name, words in COMMANDS.items():
                times[name].append(seconds(words, environment))
        modules = imported(DRY_RUN, environment)

    dry = times[list(COMMANDS)[-1]]
    torch_free = "torch" not in modules
    slowest = sorted(((us, name) for name, us in modules.items() if "." not in name), reverse=True)[
        :6
    ]
    body = [
        *record.table(
            ["command", "median s", "min s", "max s", "first s"],
            [
                [
                    f"`{name}`",
                    *(
                        f"{value:.3f}"
                        for value in (median(values), min(values), max(values), first[name])
                    ),
                ]
                for name, values in times.items()
            ],
        ),
        "",
        f"- dry run ≤ {TARGET_S:.1f} s: {'held' if max(dry) <= TARGET_S else 'MISSED'} "
        f"(slowest of {rounds}: {max(dry):.3f} s); torch imported: "
        f"{'no' if torch_free else 'YES'}; "
        f"of {', '.join(HEAVY)} imported: "
        f"{', '.join(name for name in HEAVY if name in modules) or 'none'}",
        f"- {len(modules)} modules; dearest packages, ms with all that they import: "
        + ", ".join(f"{name} {us / 1000:.0f}" for us, name in slowest),
        "",
        *record.table(
            ["round", "load", *(f"`{name.split('+')[0].strip()}`" for name in COMMANDS)],
            [
                [
                    number + 1,
                    f"{loads[number]:.2f}",
                    *(f"{values[number]:.3f}" for values in times.values()),
                ]
                for number in range(rounds)
            ],
        ),
    ]
    record.append(arguments.out, INTRODUCTION, "start-up", body, ["hydra-core", "omegaconf"])
    print("\n".join(body))
    sys.exit(0 if torch_free else 1)


def caching(folder: str) -> dict[str, str]:
    """This environment, with byte code kept in `folder`, whatever the shell says of it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}


def seconds(words: list[str], environment: dict[str, str]) -> float:
    """Wall-clock time of one process, from before it is made until it has been waited for."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *words],
        cwd=record.ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def imported(words: list[str], environment: dict[str, str]) -> dict[str, int]:
    """Every module that the command imports, with the microseconds of its import and all below
    it.
    """
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        cwd=record.ROOT,
        env=environment,
        capture_output=True,
        check=True,
    )
    lines = re.findall(
        r"^import time: +\d+ \| +(\d+) \| +(\S+)$", run.stderr.decode(), re.MULTILINE
    )
    return {name: int(cumulative) for cumulative, name in lines}


if __name__ == "__main__":
    main()
