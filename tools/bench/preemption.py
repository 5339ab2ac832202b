"""How soon a preempted job trains again once its nodes are free: ours, plain `sbatch --requeue`, and submitit.

`python tools/bench/preemption.py [--rounds N] [--grace S …]`, as root, with tools/install_slurm.sh done. Rows go to
benchmarks/preemption.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import record

LOCAL_SLURM = record.ROOT / "tools" / "local_slurm"
HOLD_S = 20  # how long the urgent job keeps the nodes
PATIENCE_S = 240.0
INTRODUCTION = """
# From preemption to the next step

Seconds from the moment the nodes are free again (the urgent job's last word) to the first optimizer step after it, on
a real Slurm (`tools/local_slurm`, 2 nodes × 2 ranks, PreemptMode=REQUEUE). Slurm lets a requeued job wait for 121 s;
the watchdog takes that away. hpc_llm trains mpt-tiny with DeepSpeed and loads its checkpoint within the figure; the
others run four processes that import torch and count steps in a file, so their start is the cheaper one. "Never": the
job was over for good, with Slurm's state beside it.

Written by `tools/bench/preemption.py`; sections are only ever added.
"""
COUNTER = """
import os, pathlib, sys, time
import torch

def count(folder):
    mine = pathlib.Path(folder, "rank-" + os.environ["SLURM_PROCID"])
    step = int(mine.read_text()) if mine.exists() else 0
    while True:
        torch.randn(64, 64) @ torch.randn(64, 64)
        time.sleep(0.02)
        step += 1
        mine.with_suffix(".draft").write_text(str(step))
        mine.with_suffix(".draft").rename(mine)

if __name__ == "__main__":
    count(sys.argv[1])
"""
PLAIN = """#!/bin/bash
#SBATCH --partition=train --requeue --nodes=2 --ntasks-per-node=2 --gpus-per-node=2 --time=60 --mem=2000
srun --kill-on-bad-exit=1 {python} {folder}/counter.py {folder}
"""
SUBMITIT = """
import sys, submitit
sys.path.insert(0, sys.argv[1])
from counter import count
class Job(submitit.helpers.Checkpointable):
    def __call__(self, folder):
        sys.path.insert(0, folder)
        from counter import count
        count(folder)
executor = submitit.SlurmExecutor(sys.argv[1] + "/log")
executor.update_parameters(partition="train", time=60, nodes=2, ntasks_per_node=2, gpus_per_node=2, mem="2000MB")
print(executor.submit(Job(), sys.argv[1]).job_id)
"""


@dataclass
class Bench:
    """One cluster; each arm submits, says its job and how many steps are done."""

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        fields = dict(
            word.split("=", 1) for word in self.call("scontrol", "show", "job", "-o", job).split() if "=" in word
        )
        return fields["JobState"]

    def urgent(self, mark: Path) -> None:
        """A job that takes both nodes for a while and notes when it leaves."""
        words = ["--nodes=2", "--exclusive", "--partition=urgent", "--time=5", "--output=/dev/null", "--mem=1000"]
        self.call("sbatch", *words, f"--wrap=sleep {HOLD_S}; date +%s.%N > {mark}")


@contextmanager
def ours(bench: Bench, place: Path, every_s: float) -> Iterator[tuple[str, Callable[[], tuple[int, float]]]]:
    """A run looked after by the watchdog as it comes, or at a shorter interval."""
    root = place / "runs"
    words = ["+cluster=local-slurm", "model=mpt-tiny", "train.duration=100000steps", "trackers=[]"]
    small = ["train.seq_len=64", "train.global_batch=4", "checkpoint.every=100steps", "train.eval_every=100000steps"]
    bench.call(sys.executable, "-m", "hpc_llm.submit", *words, *small, f"run.root={root}", "run.name=run")
    submitted = json.loads((root / "run" / "ledger" / "submit.jsonl").read_text().splitlines()[0])
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "hpc_llm.watchdog", str(root), "--every", str(every_s)],
        env=bench.environment,
        stdout=subprocess.DEVNULL,
    )
    metrics = root / "run" / "metrics.jsonl"

    def steps() -> tuple[int, float]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        done = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return (max(done), metrics.stat().st_mtime) if done else (0, 0.0)

    try:
        yield str(submitted["job"]), steps
    finally:
        watchdog.terminate()
        watchdog.wait()


@contextmanager
def counter(bench: Bench, place: Path, how: str) -> Iterator[tuple[str, Callable[[], tuple[int, float]]]]:
    """The counting job, under plain Slurm or under submitit."""
    (place / "counter.py").write_text(COUNTER)
    if how == "submitit":
        (place / "job.py").write_text(SUBMITIT)
        job = bench.call(sys.executable, str(place / "job.py"), str(place))
    else:
        (place / "job.sbatch").write_text(PLAIN.format(python=sys.executable, folder=place))
        job = bench.call(
            "sbatch", "--parsable", f"--output={place}/log", "--open-mode=append", str(place / "job.sbatch")
        )

    def steps() -> tuple[int, float]:
        mine = place / "rank-0"
        return (int(mine.read_text()), mine.stat().st_mtime) if mine.exists() else (0, 0.0)

    yield job, steps


ARMS = {
    "hpc_llm, watchdog every 60 s": lambda bench, place: ours(bench, place, 60),
    "hpc_llm, watchdog every 10 s": lambda bench, place: ours(bench, place, 10),
    "sbatch --requeue": lambda bench, place: counter(bench, place, "plain"),
    "submitit": lambda bench, place: counter(bench, place, "submitit"),
}


def measure(bench: Bench, arm: str) -> tuple[float | None, str]:
    """Seconds from free nodes to the next step (None: never), and the job's state then."""
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    with ARMS[arm](bench, place) as (job, steps):
        wait(lambda: steps()[0] >= 150, "150 steps")
        bench.urgent(place / "free")
        wait((place / "free").exists, "the urgent job's end")
        wait(lambda: (place / "free").read_text() != "", "its last word")
        free = float((place / "free").read_text())
        ended = wait(lambda: steps()[1] > free or bench.state(job) in ("FAILED", "CANCELLED", "COMPLETED"), "a step")
        state = bench.state(job)
        _, when = steps()
        bench.call("scancel", f"--user={os.getuid()}")
        wait(lambda: bench.call("squeue", "--noheader") == "", "an empty queue")
    if not ended or when <= free:
        return None, state
    return when - free, state


def wait(condition: Callable[[], bool], what: str) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            print(f"not within {PATIENCE_S:.0f} s: {what}", file=sys.stderr)
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--grace", type=int, nargs="+", default=[0, 5], help="GraceTime of the cluster, seconds")
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "preemption.md")
    arguments = parser.parse_args()
    rows = [row for grace in arguments.grace for row in on_cluster(grace, arguments.rounds)]
    header = ["arm", "GraceTime s", "round", "load", "to the next step s", "job then"]
    body = record.table(header, rows)
    record.append(arguments.out, INTRODUCTION, "preemption", body, ["submitit", "torch", "deepspeed"])
    print("\n".join(body))


def on_cluster(grace: int, rounds: int) -> Iterator[list[object]]:
    """All arms in turn on a cluster of that GraceTime."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = {**os.environ, "LOCAL_SLURM_DIR": str(folder / "slurm"), "PYTHONPATH": str(record.ROOT)}
        subprocess.run([LOCAL_SLURM, "up", "--grace-time", str(grace)], env=environment, check=True)
        environment["SLURM_CONF"] = str(folder / "slurm" / "etc" / "slurm.conf")
        bench = Bench(folder, environment)
        try:
            for number in range(1, rounds + 1):
                for arm in ARMS:
                    load = os.getloadavg()[0]
                    seconds, state = measure(bench, arm)
                    shown = "never" if seconds is None else f"{seconds:.1f}"
                    row = [arm, grace, number, f"{load:.2f}", shown, state]
                    print(row, file=sys.stderr, flush=True)
                    yield row
        finally:
            subprocess.run([LOCAL_SLURM, "down"], env=environment, check=True)


if __name__ == "__main__":
    main()
