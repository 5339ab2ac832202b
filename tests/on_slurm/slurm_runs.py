"""Training runs on a real Slurm for the survival tests: submitted as a user does, looked after by
the watchdog.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_llm.runs.layout import RunLayout
from hpc_llm.trackers import jsonl
from tests.chaos import warm_ranks
from tests.chaos.local_runs import FAULTS, TINY, Finished
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 600  # at the pace of runs that wait to be hit (faults/sitecustomize.py) a minute and a half
LONG_STEPS = 1500  # three and a half
LONG = f"train.duration={LONG_STEPS}steps"
WATCH_EVERY_S = 3.0  # each pass is a process, which takes cores from the ranks
_OTHERS = ("local=", "cluster.", "checkpoint.", "train.duration")
WORDS = (
    *(word for word in TINY if not word.startswith(_OTHERS)),
    *("+cluster=local-slurm", "cluster.gpus_per_node=1", f"train.duration={STEPS}steps"),
    *("checkpoint.every=250steps", "checkpoint.keep=100", "train.eval_every=100000steps"),
    "recovery.max_no_progress=10",
)


@dataclass
class SlurmRuns:
    """Runs below one root on one cluster. They train slowly until `finish` or `release` lets them
    go.
    """

    slurm: SlurmCluster
    root: Path
    user: str | None = None
    python: str = sys.executable

    def submit(self, name: str, *words: str) -> RunLayout:
        """`submit` from the checkout; the run's directory."""
        command = [
            self.python,
            "-m",
            "hpc_llm.submit",
            *WORDS,
            f"run.root={self.root}",
            f"run.name={name}",
            *words,
        ]
        self.run(*command)
        return RunLayout(self.root / name)

    def run(self, *command: str) -> str:
        """What `command` prints, in the environment that its jobs' ranks will have."""
        path = os.pathsep.join([str(FAULTS), *filter(None, [self.slurm.env.get("PYTHONPATH")])])
        more = {"PYTHONPATH": path, "HPC_LLM_PACE": str(self._released)}
        return self.slurm.run(
            *command, user=self.user, more=more, timeout_s=300
        ).stdout  # the first prepares data

    @property
    def _released(self) -> Path:
        return self.root.with_name(f"{self.root.name}-released")

    def release(self) -> None:
        """From now on they train as fast as they can."""
        self._released.touch()

    def job_of(self, run: RunLayout) -> str:
        """Its job's id, of the last submission."""
        found = re.findall(
            r'"event": "(?:re)?submitted".*?"job": "([\d_]+)"', self.ledger_text(run)
        )
        return str(found[-1])

    def ledger_text(self, run: RunLayout) -> str:
        return "".join(path.read_text() for path in sorted(run.ledger.glob("*.jsonl")))

    def steps(self, run: RunLayout) -> int:
        return max((int(row["step"]) for row in jsonl.read(run.metrics)), default=0)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
        """Wait for `condition`, with a pass of the watchdog every few seconds, as a user's has one
        every minute.
        """
        watched = 0.0

        def met() -> bool:
            nonlocal watched
            if condition():
                return True
            if time.monotonic() - watched >= WATCH_EVERY_S:
                self.watch()
                watched = time.monotonic()
            return False

        until(met, timeout_s, what, poll_s=0.3)

    def watch(self) -> None:
        """One pass of the watchdog."""
        self.run(self.python, "-m", "hpc_llm.watchdog", str(self.root), "--once")

    def until_trained(self, run: RunLayout, steps: int) -> None:
        self.until(lambda: self.steps(run) >= steps, f"{run.name} at step {steps}")

    def finish(self, run: RunLayout, timeout_s: float = 300, steps: int = STEPS) -> Finished:
        """Once the run says that it is complete; all below this root are let go."""
        self.release()
        self.until(
            lambda: '"completed", "attempt"' in self.ledger_text(run),
            f"{run.name} complete",
            timeout_s,
        )
        return Finished(0, "", run, last=steps)

    def status(self) -> dict[str, dict[str, Any]]:
        """`status --json` by run."""
        import json

        done = self.slurm.run(
            self.python, "-m", "hpc_llm.status", str(self.root), "--json", user=self.user
        )
        return {row["name"]: row for row in json.loads(done.stdout)}


def processes(run: Path, program: str) -> list[int]:
    """Pids of the run's processes with this word on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program.encode() in words and str(run).encode() in words:
            found.append(int(folder.name))
    return found


def stop_rank(run: Path, rank: int) -> None:
    """SIGSTOP to the process that trains; its peers and Slurm hear nothing of it."""
    for pid in pids_of_rank(run, rank):
        os.kill(warm_ranks.pid_of_fork(pid), signal.SIGSTOP)


def pids_of_rank(run: Path, rank: int) -> list[int]:
    """Of processes of that rank that srun started, which Slurm's environment tells apart."""
    wanted = f"SLURM_PROCID={rank}".encode()
    pids = []
    for pid in processes(run, "hpc_llm.train"):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if wanted in environment and b"srun" not in command:
            pids.append(pid)
    return pids
