"""Names inside a run directory. No other file knows one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CONFIG_FILE = "config.json"  # what makes a folder a run
CODE_FOLDER = ".code"  # snapshots of the source, one per content hash, shared by the runs of a root


@dataclass(frozen=True)
class RunLayout:
    """Where everything of one run lies. Standard library only: the batch shell reads it too."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    def code_hash(self) -> str:
        """The name of the snapshot that the run has now."""
        return self.code.resolve().name

    @property
    def script(self) -> Path:
        return self.path / "job.sbatch"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:04d}"

    def supervisor_log(self, number: int) -> Path:
        return self.attempt(number) / "supervisor.log"

    def rank_log(self, number: int, rank: int) -> Path:
        return self.attempt(number) / f"rank-{rank:04d}.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.tracker_folder("tensorboard")

    def tracker_folder(self, name: str) -> Path:
        """Where the tracker of that name may write."""
        return self.path / name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def divergence(self, number: int) -> Path:
        return self.attempt(number) / "diverged.json"

    def stacks(self, number: int) -> Path:
        """Where py-spy's view of hung ranks goes."""
        return self.attempt(number) / "stacks.txt"

    @property
    def heartbeats(self) -> Path:
        return self.path / "heartbeats"

    @property
    def heartbeat(self) -> Path:
        """Touched by the living supervisor every few seconds."""
        return self.heartbeats / "supervisor"

    def node_heartbeat(self, node: str) -> Path:
        return self.heartbeats / f"{node}.beat"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def make_folders(self) -> None:
        """The folders that must stand before a job writes into them."""
        for folder in (
            self.ledger,
            self.slurm,
            self.attempts,
            self.checkpoints,
            self.heartbeat.parent,
        ):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class RootLayout:
    """What lies in a root beside its runs."""

    path: Path

    @staticmethod
    def of(run: RunLayout) -> RootLayout:
        """The root that a frozen run lies in: its code is <root>/.code/<hash>."""
        return RootLayout(run.code.resolve().parent.parent)

    def path_of(self, run: RunLayout) -> str:
        """Where the run lies below this root: another sweep may have a run of the same name."""
        return os.path.relpath(run.path.resolve(), self.path.resolve())

    @property
    def watch_lock(self) -> Path:
        """Held by the watchdog that makes its pass."""
        return self.path / ".watchdog.lock"

    @property
    def census(self) -> Path:
        """What the watchdog's last pass knew of every run: a cache, which may be removed."""
        return self.path / ".watchdog.json"

    @property
    def told(self) -> Path:
        """Notifications that the watchdog has sent or has yet to; deleting it repeats them."""
        return self.path / ".watchdog.told.json"

    @property
    def last_pass(self) -> Path:
        """When and where a watchdog was last alive."""
        return self.path / ".watchdog.pass"

    @property
    def attention(self) -> Path:
        """Touched by a run that wants the watchdog to look soon."""
        return self.path / ".attention"

    @property
    def compiled(self) -> Path:
        """What torch.compile made for the runs here, so that no other node compiles it again."""
        return self.path / ".compiled"

    @property
    def experience(self) -> Path:
        """Micro-batches that were too much for a GPU, and how fast runs were; it may be removed."""
        return self.path / ".experience"

    @property
    def submit_lock(self) -> Path:
        """Held while runs are frozen and submitted."""
        return self.path / ".submit.lock"

    @property
    def backlog(self) -> Path:
        """What Slurm has no room for yet, a file for each array's script."""
        return self.path / ".backlog"

    @property
    def searches(self) -> Path:
        """Searches by results, a file for each."""
        return self.path / ".searches"

    def search(self, sweep: str) -> Path:
        return self.searches / f"{sweep}.json"

    @property
    def nodes(self) -> Path:
        """Evidence against nodes, a file for each writer."""
        return self.path / ".nodes"


@dataclass(frozen=True)
class SweepLayout:
    """The folder of a sweep, <root>/<sweep>: its runs, and one script for each of its arrays."""

    path: Path

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    def script(self, number: int) -> Path:
        """job.sbatch, job-2.sbatch, …

        A script that was submitted is never written again: its tasks refer to it.
        """
        if number == 1:
            return self.path / "job.sbatch"
        return self.path / f"job-{number}.sbatch"

    def runs(self) -> list[RunLayout]:
        return [RunLayout(path.parent) for path in sorted(self.path.glob("[!.]*/config.json"))]
