"""How soon a job trains again after it was hurt: ours, plain `sbatch --requeue`, a requeue handler,
and submitit.

`python tools/bench/recovery.py [--rounds N] [--grace S] [--faults preempted rank-killed …] [--arms
…]`, as root, with tools/install_slurm.sh done. Rows go to benchmarks/recovery.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record

LOCAL_SLURM = record.ROOT / "tools" / "local_slurm"
FROM_WITHIN = (
    record.ROOT / "tests" / "chaos" / "faults"
)  # makes ranks of ours obey orders in a file
HOLD_S = 20  # how long the urgent job keeps the nodes
PATIENCE_S = 240.0
INTRODUCTION = """
# Recovery

Seconds until the first optimizer step after a fault, on a real Slurm (`tools/local_slurm`, 3 nodes with 2 GPUs, jobs of
2 nodes × 2 ranks, PreemptMode=REQUEUE). They count from the fault itself; after a preemption from the moment the nodes
are free again (the urgent job's last word), since until then nobody can train. Slurm lets a requeued job wait for
121 s; the watchdog takes that away.

"Detected" is the first word of the fault in the run's ledger, where there is one. "Lost": steps that were done and had
to be done again. hpc_llm trains mpt-tiny with DeepSpeed and loads a checkpoint within the figure; the others run four
processes that import torch and count steps in a file at every step, so their start is the cheaper one and they lose
nothing. "requeue handler" is what Meta's lingua does: SIGUSR2 before the time limit makes rank 0 requeue its job,
SIGTERM is ignored. "Never": the job was over for good, or hung until it was given up, with Slurm's state beside it.
Nodes are taken for dead after 15 s of silence (SlurmdTimeout), a rank for hung after 10 s (recovery.hang_floor_s). The
time limit is played by its notice, SIGUSR2. A full disk and a slurmctld that is away for twenty seconds end no attempt:
there the figure is the longest pause between two steps. "watchdog-killed": a preemption with nobody to look after it.

Written by `tools/bench/recovery.py`; sections are only ever added.
"""
COUNTER = """
import os, pathlib, signal, subprocess, sys, time
import torch

def requeue(*_):
    if os.environ["SLURM_PROCID"] == "0":
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
    sys.exit(0)

if os.environ.get("HANDLER"):
    signal.signal(signal.SIGUSR2, requeue)
    signal.signal(signal.SIGTERM, lambda *_: None)

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
HANDLER = PLAIN.replace("#SBATCH", "#SBATCH --signal=USR2@120", 1).replace(
    "srun", "export HANDLER=1; srun", 1
)
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
    lost: str | None = None  # a node whose slurmd is dead
    bad: str | None = None  # a node that fails every launch

    @property
    def orders(self) -> Path:
        return self.folder / "orders"

    def call(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def fields(self, job: str) -> dict[str, str]:
        said = self.call("scontrol", "show", "job", "-o", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.fields(job)["JobState"]

    def end(self) -> None:
        """An empty queue, and every node back."""
        if self.lost is not None:
            self.call(str(LOCAL_SLURM), "revive-node", self.lost)
            self.lost = None
        if self.bad is not None:
            (self.folder / f"bad-{self.bad}").unlink()
            self.call("scontrol", "update", f"NodeName={self.bad}", "State=RESUME")
            self.bad = None
        user = f"--user={os.getuid()}"
        subprocess.run(
            ["scancel", "--signal=KILL", "--full", user], env=self.environment, check=False
        )
        self.call("scancel", user)
        wait(lambda: self.call("squeue", "--noheader") == "", "an empty queue")
        wait(
            lambda: (
                self.call("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle") >= 3
            ),
            "idle nodes",
        )

    def urgent(self, mark: Path) -> None:
        """A job that takes all nodes for a while and notes when it leaves."""
        words = [
            "--nodes=3",
            "--exclusive",
            "--partition=urgent",
            "--time=5",
            "--output=/dev/null",
            "--mem=1000",
        ]
        self.call("sbatch", *words, f"--wrap=sleep {HOLD_S}; date +%s.%N > {mark}")


@dataclass
class Job:
    """One arm's job under way. `steps` says how many are done and when the last one was."""

    bench: Bench
    id: str
    place: Path
    steps: Callable[[], tuple[int, float]]
    run: Path | None = None  # the run directory, of ours
    watchdog: subprocess.Popen[bytes] | None = None  # of ours

    def ranks(self) -> list[int]:
        """Pids of the processes that train or count."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            inside = b"SLURM_PROCID=" in environment and str(self.place).encode() in b" ".join(
                words
            )
            launcher = words[0].endswith((b"srun", b"bash")) or b"hpc_llm.supervise" in words
            if inside and not launcher:
                found.append(int(folder.name))
        return sorted(found)

    def ledger(self) -> list[dict[str, Any]]:
        if self.run is None:
            return []
        files = (self.run / "ledger").glob("*.jsonl")
        events = [
            json.loads(line)
            for file in files
            for line in file.read_text().splitlines()
            if line.endswith("}")
        ]
        return sorted(events, key=lambda event: event["time"])


@contextmanager
def ours(bench: Bench, place: Path, every_s: float) -> Iterator[Job]:
    """A run looked after by the watchdog as it comes, or at a shorter interval."""
    root = place / "runs"
    words = ["+cluster=local-slurm", "model=mpt-tiny", "train.duration=100000steps", "trackers=[]"]
    small = [
        "train.seq_len=64",
        "train.global_batch=4",
        "checkpoint.every=100steps",
        "train.eval_every=100000steps",
    ]
    patient = [
        "recovery.hang_floor_s=10",
        "recovery.max_no_progress=9",
        "recovery.on_divergence=skip",
    ]
    bench.call(
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *words,
        *small,
        *patient,
        f"run.root={root}",
        "run.name=run",
    )
    submitted = json.loads((root / "run" / "ledger" / "submit.jsonl").read_text().splitlines()[0])
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "hpc_llm.watchdog", str(root), "--every", str(every_s)],
        env=bench.environment,
        stdout=subprocess.DEVNULL,
    )
    metrics = root / "run" / "metrics.jsonl"

    def steps() -> tuple[int, float]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        done = [json.loads(line) for line in lines[-3:] if line.endswith("}")]
        return (done[-1]["step"], done[-1].get("time", 0.0)) if done else (0, 0.0)

    try:
        yield Job(bench, str(submitted["job"]), place, steps, root / "run", watchdog)
    finally:
        watchdog.terminate()
        watchdog.wait()


@contextmanager
def counter(bench: Bench, place: Path, how: str) -> Iterator[Job]:
    """The counting job, by one of `SCRIPTS` or under submitit."""
    (place / "counter.py").write_text(COUNTER)
    if how == "submitit":
        (place / "job.py").write_text(SUBMITIT)
        job = bench.call(sys.executable, str(place / "job.py"), str(place))
    else:
        script = place / "job.sbatch"
        script.write_text(
            SCRIPTS[how].format(python=shlex.quote(sys.executable), folder=shlex.quote(str(place)))
        )
        job = bench.call(
            "sbatch", "--parsable", f"--output={place}/log", "--open-mode=append", str(script)
        )

    def steps() -> tuple[int, float]:
        mine = place / "rank-0"
        return (int(mine.read_text()), mine.stat().st_mtime) if mine.exists() else (0, 0.0)

    yield Job(bench, job, place, steps)


SCRIPTS = {"plain": PLAIN, "handler": HANDLER}
ARMS: dict[str, Callable[[Bench, Path], Any]] = {
    "hpc_llm": lambda bench, place: ours(bench, place, 60),
    "sbatch --requeue": lambda bench, place: counter(bench, place, "plain"),
    "requeue handler": lambda bench, place: counter(bench, place, "handler"),
    "submitit": lambda bench, place: counter(bench, place, "submitit"),
}


def preempted(job: Job) -> float:
    """Each fault returns the moment from which the job could train again."""
    free = job.place / "free"
    job.bench.urgent(free)
    wait(lambda: free.exists() and free.read_text() != "", "the urgent job's end")
    return float(free.read_text())


def rank_killed(job: Job) -> float:
    os.kill(job.ranks()[-1], signal.SIGKILL)
    return time.time()


def rank_stopped(job: Job) -> float:
    os.kill(job.ranks()[-1], signal.SIGSTOP)
    return time.time()


def node_lost(job: Job, number: int) -> float:
    fields = job.bench.fields(job.id)
    node = job.bench.call("scontrol", "show", "hostnames", fields["NodeList"]).split()[number]
    job.bench.call(str(LOCAL_SLURM), "kill-node", node)
    job.bench.lost = node
    return time.time()


def time_limit(job: Job) -> float:
    """The notice, to whom each arm's --signal sends it."""
    to_shell = ["--batch"] if job.run is not None else []
    job.bench.call("scancel", *to_shell, "--signal=USR2", job.id)
    return time.time()


def order(job: Job, **fault: object) -> float:
    """Have rank 1 of a run of ours do it before its next step."""
    draft = job.bench.folder / "draft"
    draft.write_text(json.dumps({"rank": 1, **fault}))
    draft.rename(job.bench.orders)
    wait(lambda: not job.bench.orders.exists(), "a rank that obeys")
    return time.time()


def checkpoint_damaged(job: Job) -> float:
    """The newest of two, and a rank killed, so that it is asked for."""
    assert job.run is not None
    checkpoints = job.run / "checkpoints"
    wait(lambda: len(list(checkpoints.glob("step-*/manifest.json"))) > 1, "a second checkpoint")
    newest = max(path.parent for path in checkpoints.glob("step-*/manifest.json"))
    largest = max(newest.glob("*.pt"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)
    return rank_killed(job)


def watchdog_killed(job: Job) -> float:
    """And nobody starts it again: what Slurm and the supervisor do alone, over a preemption."""
    assert job.watchdog is not None
    job.watchdog.kill()
    return preempted(job)


def launch_fails(job: Job) -> float:
    """At the time limit the batch host fails whatever is started on it, and Slurm holds the job."""
    job.bench.bad = job.bench.fields(job.id)["BatchHost"]
    (job.bench.folder / f"bad-{job.bench.bad}").touch()
    return time_limit(job)


def disk_full(job: Job) -> float:
    """In one rank's next save."""
    order(job, kind="full", after=100, times=1)
    wait(
        lambda: any(event["event"] == "save-failed" for event in job.ledger()), "a save that fails"
    )
    return next(event["time"] for event in job.ledger() if event["event"] == "save-failed")


def slurmctld_down(job: Job) -> float:
    job.bench.call(str(LOCAL_SLURM), "ctld-stop")
    since = time.time()
    wait(lambda: job.steps()[1] > since + 20, "twenty seconds of steps")
    job.bench.call(str(LOCAL_SLURM), "ctld-start")
    return since


FAULTS: dict[str, Callable[[Job], float]] = {
    "preempted": preempted,
    "rank-killed": rank_killed,
    "rank-stopped": rank_stopped,
    "time-limit": time_limit,
    "worker-lost": lambda job: node_lost(job, 1),
    "batch-host-lost": lambda job: node_lost(job, 0),
}
OURS = {  # of those that need a checkpoint, or a rank that can be told
    "checkpoint-damaged": checkpoint_damaged,
    "host-memory": lambda job: order(job, kind="raise", error="host-memory"),
    "nan": lambda job: order(job, kind="nan"),
    "watchdog-killed": watchdog_killed,
    "launch-fails": launch_fails,
    "disk-full": disk_full,
    "slurmctld-down": slurmctld_down,
}
PASSING = ("disk-full", "slurmctld-down")  # no attempt ends


@dataclass(frozen=True)
class Measured:
    """Seconds from the fault; None: never."""

    detected: float | None
    next_step: float | None
    lost_steps: int | None
    state: str


def measure(bench: Bench, arm: str, fault: str) -> Measured:
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    with ARMS[arm](bench, place) as job:
        wait(lambda: job.steps()[0] >= 150, "150 steps")
        known = len(job.ledger())
        since = {**FAULTS, **OURS}[fault](job)
        before, _ = job.steps()
        over = ("FAILED", "CANCELLED", "COMPLETED", "NODE_FAIL", "TIMEOUT")

        def again() -> bool:
            return job.steps()[1] > since if fault in PASSING else trains_again(job, since)

        wait(lambda: again() or (bench.state(job.id) in over and job.run is None), "a step")
        state = bench.state(job.id)
        when = job.steps()[1]
        told = [event["time"] for event in job.ledger()[known:] if event["event"] != "checkpointed"]
        resumed = [event["step"] for event in job.ledger()[known:] if event["event"] == "resumed"]
        found = Measured(
            detected=max(0.0, told[0] - since)
            if told and fault not in ("preempted", "watchdog-killed")
            else None,
            next_step=(pause_s(job, since) if fault in PASSING else when - since)
            if again()
            else None,
            lost_steps=max(0, before - resumed[0]) if resumed else 0 if fault in PASSING else None,
            state=state,
        )
    bench.end()
    return found


def pause_s(job: Job, since: float) -> float:
    """The longest time between two steps of a run that goes on, from a second before the fault."""
    assert job.run is not None
    rows = [
        json.loads(line)
        for line in (job.run / "metrics.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    times = [row["time"] for row in rows if row.get("time", 0.0) > since - 1]
    return max(late - early for early, late in itertools.pairwise(times))


def trains_again(job: Job, since: float) -> bool:
    """Whether a step was done after the fault by processes that were started after it."""
    if job.steps()[1] <= since:
        return False
    if job.run is not None:
        resumed = [event["time"] for event in job.ledger() if event["event"] == "resumed"]
        return bool(resumed) and job.steps()[1] > resumed[-1] > since - 1
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    hertz = os.sysconf("SC_CLK_TCK")
    starts = []
    for pid in job.ranks():
        with contextlib.suppress(OSError, IndexError):
            starts.append(
                boot
                + int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / hertz
            )
    return bool(starts) and job.steps()[1] > max(starts) > since - 1


def wait(condition: Callable[[], bool], what: str) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            print(f"not within {PATIENCE_S:.0f} s: {what}", file=sys.stderr)
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--grace", type=int, default=0, help="GraceTime of the cluster, seconds")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=[*FAULTS, *OURS])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "recovery.md")
    arguments = parser.parse_args()
    rows = list(on_cluster(arguments))
    header = [
        "fault",
        "arm",
        "round",
        "load",
        "detected s",
        "to the next step s",
        "lost steps",
        "job then",
    ]
    body = [f"GraceTime {arguments.grace} s.", "", *record.table(header, rows)]
    record.append(arguments.out, INTRODUCTION, "recovery", body, ["submitit", "torch", "deepspeed"])
    print("\n".join(body))


def on_cluster(arguments: argparse.Namespace) -> Iterator[list[object]]:
    """Arms in turn, fault by fault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = {**os.environ, "LOCAL_SLURM_DIR": str(folder / "slurm")}
        environment["PYTHONPATH"] = f"{FROM_WITHIN}{os.pathsep}{record.ROOT}"
        environment["HPC_LLM_FAULT_ORDERS"] = str(folder / "orders")
        up = [LOCAL_SLURM, "up", "--nodes", "3", "--grace-time", str(arguments.grace)]
        subprocess.run(up, env=environment, check=True)
        environment["SLURM_CONF"] = str(folder / "slurm" / "etc" / "slurm.conf")
        bench = Bench(folder, environment)
        prolog = folder / "prolog"
        prolog.write_text(
            f"#!/bin/bash\n[[ ! -e {shlex.quote(str(folder))}/bad-$SLURMD_NODENAME ]]\n"
        )
        prolog.chmod(0o755)
        with Path(environment["SLURM_CONF"]).open("a") as file:
            file.write(f"Prolog={prolog}\n")
        bench.call("scontrol", "reconfigure")
        try:
            for number in range(1, arguments.rounds + 1):
                for fault in arguments.faults:
                    for arm in [
                        arm for arm in arguments.arms if fault in FAULTS or arm == "hpc_llm"
                    ]:
                        load = os.getloadavg()[0]
                        found = measure(bench, arm, fault)
                        shown = [_shown(found.detected, "–"), _shown(found.next_step, "never")]
                        lost = "–" if found.lost_steps is None else found.lost_steps
                        row = [fault, arm, number, f"{load:.2f}", *shown, lost, found.state]
                        print(row, file=sys.stderr, flush=True)
                        yield row
        finally:
            subprocess.run([LOCAL_SLURM, "down"], env=environment, check=True)


def _shown(seconds: float | None, missing: str) -> str:
    return missing if seconds is None else f"{seconds:.1f}"


if __name__ == "__main__":
    main()
