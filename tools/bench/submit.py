"""How soon the shell is back after a submission: 1, 100 and 1,000 runs, ours,
hydra-submitit-launcher and submitit.

`python tools/bench/submit.py --peers VENV [--runs 1,100,1000] [--rounds N]`, as root, with
tools/install_slurm.sh done. VENV has hydra-submitit-launcher, which brings submitit and hydra-core.
Rows go to benchmarks/submit.md.

A cluster of tools/local_slurm takes the jobs and starts none. Every arm finds the same `sbatch` on
PATH: a wrapper that notes when Slurm has accepted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import record

LOCAL_SLURM = record.ROOT / "tools" / "local_slurm"
PATIENCE_S = 600.0
TARGET_S = 15
LINGER_S = 10.0  # how long a launcher that has submitted may keep the shell before it is ended
INTRODUCTION = """
# Submission

Seconds of whole processes on a real Slurm (`tools/local_slurm`, jobs are accepted and not started). "Accepted": when
the last sbatch had returned; "prompt": when the shell was back. hpc_llm plans each run, freezes configuration and code
into its directory and renders its script; the others pickle a function that does nothing. hydra-submitit-launcher
keeps the shell until its jobs have ended, so it was ended 10 s after Slurm had accepted. A sweep is one array in all
three. Arms take turns within a round.

Written by `tools/bench/submit.py`; sections are only ever added.
"""
SMALL = [  # whose checkpoints a thousand times over fit on the disk, which submit looks at
    *(
        "model.d_model=32",
        "model.n_heads=2",
        "model.n_layers=1",
        "model.vocab_size=512",
        "model.max_seq_len=64",
    ),
    "train.seq_len=16",
]
APP = """
import hydra
@hydra.main(version_base=None, config_path=None)
def main(config):
    pass
main()
"""
PLAIN = """
import sys, submitit
executor = submitit.SlurmExecutor("log")
executor.update_parameters(partition="train", time=60, nodes=1, ntasks_per_node=1, array_parallelism=8)
count = int(sys.argv[1])
executor.map_array(float, range(count)) if count > 1 else executor.submit(float, 1)
"""
SBATCH = """#!/bin/bash
{sbatch} "$@"
status=$?
date +%s.%N >> {mark}
exit $status
"""


@dataclass(frozen=True)
class Bench:
    """Where the arms work and what they find there."""

    folder: Path
    peers: Path
    environment: dict[str, str]

    def words(self, arm: str, count: int) -> list[str]:
        """What a user types for `count` runs."""
        if arm == "hpc_llm":
            sweep = ["-m", f"run.seed=range({count})"] if count > 1 else []
            return [sys.executable, "-m", "hpc_llm.submit", "+cluster=local-slurm", *SMALL, *sweep]
        python = str(self.peers / "bin" / "python")
        if arm == "submitit":
            return [python, str(self.folder / "plain.py"), str(count)]
        launcher = [
            "hydra/launcher=submitit_slurm",
            "hydra.launcher.partition=train",
            "hydra.launcher.timeout_min=60",
        ]
        return [python, str(self.folder / "app.py"), "-m", *launcher, f"+seed=range({count})"]

    def measure(self, arm: str, count: int) -> tuple[float, float | None]:
        """Seconds until accepted and until the prompt; None where the shell was not given back."""
        mark = self.folder / "accepted"
        mark.unlink(missing_ok=True)
        place = Path(tempfile.mkdtemp(dir=self.folder))
        words = self.words(arm, count)
        if arm == "hpc_llm":
            words += [
                f"run.root={self.folder / 'runs'}",
                f"run.sweep=s{place.name}" if count > 1 else "",
            ]
        begun = time.time()
        with (place / "output").open("w") as output:
            process = subprocess.Popen(
                [word for word in words if word],
                cwd=place,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
            prompt = self._until_back(process, begun, mark)
        if process.returncode and prompt is not None:
            sys.exit(f"{arm} failed:\n{(place / 'output').read_text()}")
        accepted = float(mark.read_text().split()[-1]) - begun
        self.slurm("scancel", f"--user={os.getuid()}")
        return accepted, prompt

    def _until_back(
        self, process: subprocess.Popen[bytes], begun: float, mark: Path
    ) -> float | None:
        while process.poll() is None:
            now = time.time()
            lingers = mark.exists() and now - mark.stat().st_mtime > LINGER_S
            if lingers or now - begun > PATIENCE_S:
                process.kill()
                process.wait()
                return None
            time.sleep(0.005)
        return time.time() - begun

    def slurm(self, *words: str) -> None:
        subprocess.run(words, env=self.environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, metavar="VENV")
    parser.add_argument(
        "--runs", type=lambda text: [int(word) for word in text.split(",")], default=[1, 100, 1000]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "submit.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge's socket must be reachable
        inherited = {
            **os.environ,
            "LOCAL_SLURM_DIR": str(folder / "slurm"),
            "PYTHONPATH": str(record.ROOT),
        }
        subprocess.run([LOCAL_SLURM, "up"], env=inherited, check=True)
        try:
            rows = run(
                prepared(folder, arguments.peers, inherited), arguments.runs, arguments.rounds
            )
        finally:
            subprocess.run([LOCAL_SLURM, "down"], env=inherited, check=True)
    body = [
        *summary(rows),
        "",
        *record.table(["round", "load", "arm", "runs", "accepted s", "prompt s"], raw(rows)),
    ]
    record.append(
        arguments.out, INTRODUCTION, "time to the prompt", body, ["hydra-core", "submitit"]
    )
    print("\n".join(body))


def prepared(folder: Path, peers: Path, environment: dict[str, str]) -> Bench:
    """The cluster closed to starts, `sbatch` wrapped, the peers' programs written, our data
    prepared.
    """
    wrapped = folder / "bin" / "sbatch"
    wrapped.parent.mkdir()
    wrapped.write_text(SBATCH.format(sbatch=shutil.which("sbatch"), mark=folder / "accepted"))
    wrapped.chmod(0o755)
    (folder / "app.py").write_text(APP)
    (folder / "plain.py").write_text(PLAIN)
    conf = {"SLURM_CONF": str(folder / "slurm" / "etc" / "slurm.conf")}
    path = {"PATH": f"{wrapped.parent}{os.pathsep}{environment['PATH']}"}
    bench = Bench(folder, peers, environment | conf | path)
    bench.slurm("scontrol", "update", "PartitionName=train", "State=DOWN")
    bench.slurm(sys.executable, "-m", "hpc_llm.prepare", *SMALL, f"run.root={folder / 'runs'}")
    return bench


Row = tuple[int, float, str, int, float, "float | None"]  # round, load, arm, runs, accepted, prompt


def run(bench: Bench, counts: list[int], rounds: int) -> list[Row]:
    rows: list[Row] = []
    for number in range(1, rounds + 1):
        for count in counts:
            for arm in ("hpc_llm", "hydra-submitit-launcher", "submitit"):
                load = os.getloadavg()[0]
                rows.append((number, load, arm, count, *bench.measure(arm, count)))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def summary(rows: list[Row]) -> list[str]:
    """Median by arm and number of runs."""
    cells = []
    for arm, count in dict.fromkeys((row[2], row[3]) for row in rows):
        own = [row for row in rows if row[2:4] == (arm, count)]
        prompts = [row[5] for row in own if row[5] is not None]
        back = record.spread(prompts, 2) if prompts else "not before its jobs end"
        cells.append([arm, f"{count:,}", record.spread([row[4] for row in own], 2), back])
    held = [row[5] for row in rows if row[2] == "hpc_llm" and row[3] == 1000 and row[5] is not None]
    lines = record.table(["arm", "runs", "accepted s", "prompt s"], cells)
    if held:
        lines += [
            "",
            f"- 1,000 runs ≤ {TARGET_S} s: {'held' if max(held) <= TARGET_S else 'MISSED'}",
        ]
    return lines


def raw(rows: list[Row]) -> list[list[object]]:
    return [
        [
            number,
            f"{load:.2f}",
            arm,
            count,
            f"{accepted:.2f}",
            "–" if prompt is None else f"{prompt:.2f}",
        ]
        for number, load, arm, count, accepted, prompt in rows
    ]


if __name__ == "__main__":
    main()
