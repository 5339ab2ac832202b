"""What a change of the source costs those who wait: another checkout and this one, in turns.

`python tools/bench/checkouts.py OTHER [--rounds N]`, as root, with tools/install_slurm.sh done. OTHER is a checkout of an
earlier version; both run in this environment. Rows go to benchmarks/house.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import record
import status
import submit
import watchdog

NUM_RUNS = {"status": 10_000, "submit": 1_000}
BOUND = 1.05
INTRODUCTION = """
# The house

Whole processes of two checkouts in turns, in one environment: seconds until they end, for `submit` until Slurm has
accepted. Shown are the median over rounds (least–greatest); ratios are taken within a round. `status` looks at 10,000
runs with stand-ins for squeue and sacct, `submit` sends 1,000 as one array to the Slurm of tools/local_slurm.

Written by `tools/bench/checkouts.py`; sections are only ever added.
"""
DRY_RUN = ["-m", "hpc_llm.submit", "+cluster=a100x64", "model=mpt-7b", "dry_run=true"]
Measure = Callable[[Path], float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "house.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge's socket must be reachable
        seconds = measured(folder, arguments.other.resolve(), arguments.rounds)
    other = commit_of(arguments.other)
    rows = [row(what, *pair) for what, pair in seconds.items()]
    body = [f"- other: {other}", ""]
    body += record.table(["what", f"{other} s", "this s", "this ÷ other", f"≤ {BOUND}"], rows)
    record.append(arguments.out, INTRODUCTION, "two checkouts", body, ["hydra-core", "submitit"])
    print("\n".join(body))


def measured(folder: Path, other: Path, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """What was measured → seconds by round of the other checkout, and of this one."""
    environment = {
        **os.environ,
        "LOCAL_SLURM_DIR": str(folder / "slurm"),
        "PYTHONPATH": str(record.ROOT),
    }
    subprocess.run([submit.LOCAL_SLURM, "up"], env=environment, check=True)
    try:
        measures = prepared(folder, environment)
        seconds: dict[str, tuple[list[float], list[float]]] = {}
        for what, measure in measures.items():
            for checkout in (other, record.ROOT):
                measure(checkout)  # byte code, caches of files
            pairs = [(measure(other), measure(record.ROOT)) for _ in range(rounds)]
            seconds[what] = ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            print(what, seconds[what], file=sys.stderr, flush=True)
        return seconds
    finally:
        subprocess.run([submit.LOCAL_SLURM, "down"], env=environment, check=True)


def prepared(folder: Path, environment: dict[str, str]) -> dict[str, Measure]:
    """Runs to look at and a Slurm to submit to; what is measured, by name."""
    root = folder / "many"
    watchdog.make_root(root, NUM_RUNS["status"], status.LIVE)
    status.fill(root)
    (folder / "stand-ins").mkdir()  # beside the sbatch that submit wraps
    outside = watchdog.stand_ins(folder / "stand-ins", root, status.LIVE)
    bench = submit.prepared(folder, Path(), environment)

    def submitted(checkout: Path) -> float:
        there = submit.Bench(folder, Path(), bench.environment | {"PYTHONPATH": str(checkout)})
        accepted, _ = there.measure("hpc_llm", NUM_RUNS["submit"])
        return accepted

    return {
        "python -c pass": lambda checkout: whole(["-c", "pass"], checkout, dict(os.environ)),
        "plan": lambda checkout: whole(["-m", "hpc_llm.plan"], checkout, dict(os.environ)),
        "submit dry_run=true": lambda checkout: whole(DRY_RUN, checkout, dict(os.environ)),
        "status of 10,000": lambda checkout: whole(
            ["-m", "hpc_llm.status", str(root)], checkout, outside
        ),
        "submit of 1,000": submitted,
    }


def whole(words: list[str], checkout: Path, environment: dict[str, str]) -> float:
    """Seconds of a process with the code of `checkout`."""
    environment = environment | {"PYTHONPATH": str(checkout)}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begun


def row(what: str, other: list[float], this: list[float]) -> list[str]:
    """One line of the table."""
    ratios = [mine / theirs for theirs, mine in zip(other, this, strict=True)]
    verdict = "held" if statistics.median(ratios) <= BOUND else "MISSED"
    return [
        what,
        record.spread(other, 2),
        record.spread(this, 2),
        record.spread(ratios, 3),
        verdict,
    ]


def commit_of(checkout: Path) -> str:
    """The short name of its commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
