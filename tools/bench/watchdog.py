"""What a pass of the watchdog costs over 10,000 runs: CPU seconds, Slurm calls, file-system
operations.

`python tools/bench/watchdog.py [--runs N] [--live N] [--rounds N] [--quick]`

Run directories are made up, most of them complete; squeue and sacct are stand-ins that print what
Slurm would, and note that they were called. File-system operations are Python's audit events and
calls of stat below the root.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

TARGET_CPU_S = 2.0
SWEEP = 500  # runs in each
INTRODUCTION = """
# Recovery

How soon a run is back, and what looking after runs costs.

Sections are written by `tools/bench/`; they are only ever added.
"""
COUNTER = """
import os, sys
root, counts = sys.argv[1], [0]
watched = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.utime"}
def audit(event, arguments):
    if event in watched and str(arguments[0]).startswith(root):
        counts[0] += 1
sys.addaudithook(audit)
def counting(original):
    def stat(path, *more, **options):
        counts[0] += str(path).startswith(root)
        return original(path, *more, **options)
    return stat
os.stat, os.lstat = counting(os.stat), counting(os.lstat)
from hpc_llm.watchdog import main
status = main([root, "--once"])
print("operations", counts[0])
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument(
        "--live", type=int, default=300, help="two thirds of them running, one third queued"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="300 runs, 30 live")
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "recovery.md")
    arguments = parser.parse_args()
    num_runs, num_live = (300, 30) if arguments.quick else (arguments.runs, arguments.live)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        running = make_root(root, num_runs, num_live)
        environment = stand_ins(Path(folder), root, num_live)
        rows = [one_pass("first, nothing known", root, environment, Path(folder), counted=False)]
        for number in range(arguments.rounds):
            for path in running:
                path.touch()
            rows.append(
                one_pass(f"pass {number + 2}", root, environment, Path(folder), counted=False)
            )
        for path in running:
            path.touch()
        counted = one_pass("with operations counted", root, environment, Path(folder), counted=True)
    worst = max(row[1] for row in rows[1:])
    calls = max(row[3] for row in rows[1:])
    operations = counted[4]
    met = worst <= TARGET_CPU_S and calls <= 2 and operations <= num_live
    body = [
        (
            f"- {num_runs:,} runs, {num_live} of them live ({len(running)} running), in sweeps of "
            f"{SWEEP}"
        ),
        f"- CPU ≤ {TARGET_CPU_S:g} s, two Slurm calls, at most one file-system operation per live "
        f"run: {'held' if met else 'MISSED'} ({worst:.2f} s, {calls} calls, {operations} "
        "operations)",
        "",
        *record.table(
            [
                "pass",
                "CPU s (squeue's stand-in with it)",
                "wall s",
                "Slurm calls",
                "file-system operations",
            ],
            [
                [
                    name,
                    f"{cpu:.2f}",
                    f"{wall:.2f}",
                    calls,
                    operations if name == counted[0] else "–",
                ]
                for name, cpu, wall, calls, operations in [*rows, counted]
            ],
        ),
    ]
    record.append(arguments.out, INTRODUCTION, "a pass of the watchdog", body, [])
    print("\n".join(body))
    sys.exit(0 if met else 1)


def make_root(root: Path, num_runs: int, num_live: int) -> list[Path]:
    """Run directories with a ledger each; the heartbeats of those that run."""
    now = time.time()
    heartbeats = []
    config = json.dumps(
        {
            "cluster": {"nodes": 1, "gpus_per_node": 4, "exclude": None, "partition": None},
            "recovery": {"max_crashes": 3, "max_no_progress": 3},
            "run": {"max_gpu_hours": None},
        }
    )
    for number in range(num_runs):
        run = root / f"sweep-{number // SWEEP}" / f"seed={number}"
        for name in ("ledger", "checkpoints", "heartbeats", "attempts"):
            (run / name).mkdir(parents=True)
        (run / "config.json").write_text(config)
        job = f"{1000 + number // SWEEP}_{number % SWEEP}"
        submitted = {"time": now - 7200, "event": "submitted", "job": job}
        (run / "ledger" / "submit.jsonl").write_text(json.dumps(submitted) + "\n")
        queued = num_live * 2 // 3 <= number < num_live
        if queued:
            continue
        started = {
            "time": now - 7000,
            "event": "started",
            "attempt": 1,
            "checkpoint_step": 0,
            "nodes": ["n1"],
        }
        done = {"time": now - 60, "event": "completed", "attempt": 1}
        lines = [started] if number < num_live else [started, done]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "ledger" / "supervisor-0001.jsonl").write_text(text)
        if number < num_live:
            heartbeats.append(run / "heartbeats" / "supervisor")
            heartbeats[-1].touch()
    old = now - 3600
    for folder in root.iterdir():
        os.utime(folder, (old, old))
    return heartbeats


def stand_ins(folder: Path, root: Path, num_live: int) -> dict[str, str]:
    """An environment in which squeue knows the live jobs and sacct is noted too."""
    programs = folder / "bin"
    quoted = shlex.quote(str(folder))
    programs.mkdir()
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 7000))
    lines = []
    for number in range(num_live):
        state, reason = (
            ("PENDING", "Priority") if number >= num_live * 2 // 3 else ("RUNNING", "None")
        )
        job = f"{1000 + number // SWEEP}_{number % SWEEP}"
        work_dir = root / f"sweep-{number // SWEEP}"
        lines.append(
            f"{job}|{5000 + number}|{state}|{reason}|1|{start}|{start}|n1|sweep-{number // SWEEP}|{work_dir}"
        )
    (folder / "queue").write_text("\n".join(lines) + "\n")
    for name, says in (
        ("squeue", f"cat {quoted}/queue"),
        ("sacct", ":"),
        ("scontrol", ":"),
        ("sbatch", "exit 1"),
    ):
        (programs / name).write_text(f"#!/bin/sh\necho {name} >>{quoted}/calls\n{says}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": record.python_path(),
    }


def one_pass(
    name: str, root: Path, environment: dict[str, str], folder: Path, *, counted: bool
) -> tuple[str, float, float, int, int]:
    """name, CPU and wall seconds of the whole process, calls of Slurm, and operations where they
    are counted.
    """
    (folder / "calls").write_text("")
    words = (
        ["-c", COUNTER, str(root)] if counted else ["-m", "hpc_llm.watchdog", str(root), "--once"]
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=True
    )
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    calls = len((folder / "calls").read_text().split())
    return name, cpu, wall, calls, int(done.stdout.split()[-1]) if counted else 0


if __name__ == "__main__":
    main()
