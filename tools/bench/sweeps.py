"""A sweep of 24 runs, two of which are preempted: ours beside hydra-submitit-launcher, on the same
cluster.

`python tools/bench/sweeps.py --peers VENV [--rounds N]`, as root, with tools/install_slurm.sh done.
VENV has hydra-submitit-launcher. Rows go to benchmarks/sweeps.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import record

LOCAL_SLURM = record.ROOT / "tools" / "local_slurm"
RUNS = 24
STEPS = 2500  # long enough that no run ends within the grace
PATIENCE_S = 1200.0
INTRODUCTION = f"""
# Sweeps

{RUNS} runs in one command on a real Slurm (`tools/local_slurm`, 2 nodes × 2 GPUs, PreemptMode=REQUEUE, 5 s of grace),
one GPU each; as soon as two of them are at work, both are preempted. "Prompt": when the shell was back. "All ended":
when the queue was empty. "Steps lost": done again by the two that were preempted.

hpc_llm trains a tiny model for {STEPS} steps with DeepSpeed and a watchdog looks after it as it comes (every 60 s, or
when a run calls). Under hydra-submitit-launcher a function counts {STEPS} steps of 5 ms and starts at 0 each time, as
functions do that save nothing: what to save and find again is left to the user there.

Written by `tools/bench/` (sweeps.py, ladder.py, status.py); sections are only ever added.
"""
SMALL = [
    *(
        "model.d_model=32",
        "model.n_heads=2",
        "model.n_layers=1",
        "model.vocab_size=512",
        "model.max_seq_len=64",
    ),
    *("train.seq_len=16", "train.global_batch=4", "checkpoint.every=100steps", "trackers=[]"),
    *("cluster.nodes=1", "cluster.gpus_per_node=1", f"train.duration={STEPS}steps"),
]
APP = f"""
import pathlib, time
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base=None, config_path=None)
def main(config):
    mine = pathlib.Path(HydraConfig.get().runtime.output_dir, "steps")
    with mine.open("a") as file:
        for step in range(1, {STEPS} + 1):
            time.sleep(0.005)
            file.write(f"{{step}}\\n")
            file.flush()

main()
"""
LAUNCHER = [
    *(
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=train",
        "hydra.launcher.timeout_min=60",
    ),
    *(
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.mem_gb=1",
        "hydra.launcher.array_parallelism=24",
    ),
]


@dataclass(frozen=True)
class Swept:
    """What became of one arm's sweep. Seconds from the command on."""

    arm: str
    prompt: float | None
    ended: float
    complete: int
    lost: int
    preempted: str


@dataclass(frozen=True)
class Bench:
    """One cluster and the peers' environment."""

    folder: Path
    peers: Path
    environment: dict[str, str]

    def call(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def ours(self) -> Swept:
        root = Path(tempfile.mkdtemp(dir=self.folder))
        words = [
            sys.executable,
            "-m",
            "hpc_llm.submit",
            "+cluster=local-slurm",
            *SMALL,
            f"run.root={root}",
        ]
        begun = time.time()
        shell = subprocess.Popen(
            [*words, "-m", f"run.seed=range({RUNS})", "run.sweep=s"], env=self.environment
        )
        watch = subprocess.Popen(
            [sys.executable, "-m", "hpc_llm.watchdog", str(root)], env=self.environment
        )
        folders = root / "s"
        try:
            return self._disturbed("hpc_llm", begun, shell, lambda: _trained(folders))
        finally:
            watch.terminate()
            watch.wait()

    def theirs(self) -> Swept:
        place = Path(tempfile.mkdtemp(dir=self.folder))
        (place / "app.py").write_text(APP)
        words = [
            str(self.peers / "bin" / "python"),
            "app.py",
            "-m",
            *LAUNCHER,
            f"+seed=range({RUNS})",
        ]
        begun = time.time()
        shell = subprocess.Popen(words, env=self.environment, cwd=place, stdout=subprocess.DEVNULL)
        return self._disturbed("hydra-submitit-launcher", begun, shell, lambda: _counted(place))

    def _disturbed(
        self,
        arm: str,
        begun: float,
        shell: subprocess.Popen[bytes],
        steps: Callable[[], dict[str, int]],
    ) -> Swept:
        """Preempt the first two at work, and wait for the end of all."""
        back: list[float] = []
        newest: dict[str, int] = {}
        lost = 0

        def watch() -> None:
            nonlocal lost
            if not back and shell.poll() is not None:
                back.append(time.time() - begun)
            for name, step in steps().items():
                lost += max(0, newest.get(name, 0) - step)
                newest[name] = step

        _wait(lambda: sum(step >= 100 for step in newest.values()) >= 2, "two at work", watch)
        hit = self.call(
            "squeue", "--noheader", "--array", "--states=R", "--sort=i", "--format=%F_%K"
        ).split()[:2]
        for job in hit:
            self.call(str(LOCAL_SLURM), "preempt", job)
        _wait(lambda: not self.call("squeue", "--noheader"), "an empty queue", watch)
        ended = time.time() - begun
        shell.wait(60)
        watch()
        states = [self.call("sacct", "-nXPj", job, "-o", "state") or "?" for job in hit]
        complete = sum(step >= STEPS for step in newest.values())
        return Swept(arm, back[0] if back else None, ended, complete, lost, ", ".join(states))


def _trained(folder: Path) -> dict[str, int]:
    """The newest step by run."""
    found = {}
    for path in folder.glob("*/metrics.jsonl"):
        rows = [
            json.loads(line) for line in path.read_text().splitlines()[-3:] if line.endswith("}")
        ]
        found[path.parent.name] = max((row["step"] for row in rows), default=0)
    return found


def _counted(place: Path) -> dict[str, int]:
    files = place.glob("multirun/*/*/*/steps")
    return {
        file.parent.name: int((file.read_text().split("\n")[:-1] or ["0"])[-1]) for file in files
    }


def _wait(condition: Callable[[], bool], what: str, watch: Callable[[], None]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within {PATIENCE_S:g} s: {what}")
        watch()
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, metavar="VENV")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "sweeps.md")
    arguments = parser.parse_args()
    rows: list[tuple[int, float, Swept]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge's socket must be reachable
        environment = {
            **os.environ,
            "LOCAL_SLURM_DIR": str(folder / "slurm"),
            "PYTHONPATH": str(record.ROOT),
        }
        subprocess.run([LOCAL_SLURM, "up"], env=environment, check=True)
        environment["SLURM_CONF"] = str(folder / "slurm" / "etc" / "slurm.conf")
        bench = Bench(folder, arguments.peers, environment)
        try:
            bench.call(
                sys.executable, "-m", "hpc_llm.prepare", *SMALL[:6], f"run.root={folder / 'runs'}"
            )
            for number in range(1, arguments.rounds + 1):
                for arm in (bench.ours, bench.theirs):
                    rows.append((number, os.getloadavg()[0], arm()))
                    print(rows[-1], file=sys.stderr, flush=True)
        finally:
            subprocess.run([LOCAL_SLURM, "down"], env=environment, check=True)
    header = [
        "arm",
        "round",
        "load",
        "prompt s",
        "all ended s",
        "complete",
        "steps lost",
        "the preempted two",
    ]
    body = record.table(
        header,
        [
            [
                *(
                    one.arm,
                    number,
                    f"{load:.2f}",
                    "–" if one.prompt is None else f"{one.prompt:.1f}",
                ),
                *(f"{one.ended:.0f}", f"{one.complete} of {RUNS}", one.lost, one.preempted),
            ]
            for number, load, one in rows
        ],
    )
    record.append(
        arguments.out, INTRODUCTION, "24 runs, two preempted", body, ["hydra-core", "submitit"]
    )
    print("\n".join(body))


if __name__ == "__main__":
    main()
