"""Run directories without training, and a Slurm in memory that a watchdog can be killed over at
every call.

Real Slurm is asked in tests/on_slurm/test_watchdog.py; it cannot be stopped at exactly one of its
calls.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.config.building import to_dict
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Event, Ledger, read
from hpc_llm.slurm import client
from hpc_llm.slurm.client import SlurmUnavailable
from hpc_llm.slurm.records import JobLife, QueuedJob
from tests.configs import make_config

CALLS = (
    "queued",
    "lives",
    "submit",
    "requeue",
    "update",
    "expedite",
    "release",
    "cancel",
    "config",
    "is_awaited",
    "hostnames",
    "call",
)


class Killed(BaseException):
    """SIGKILL's part: nothing after it happens."""


@dataclass
class FakeSlurm:
    """Jobs by address. `kill_at`: the number of the call over which the caller dies, before it or
    right after it.
    """

    root: Path
    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    ended: dict[str, JobLife] = field(default_factory=dict)
    lives_of: dict[str, list[JobLife]] = field(default_factory=dict)  # several of a job
    nodes: dict[str, str] = field(
        default_factory=lambda: {f"n{number}": "idle" for number in range(1, 5)}
    )
    excluded: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # every call
    requeue_exit: str = "(null)"
    awaited: set[str] = field(default_factory=set)  # jobs that others depend on
    next_id: int = 100
    kill_at: tuple[int, str] | None = None
    down: bool = False

    def put(self, address: str, state: str, **more: Any) -> None:
        old = self.jobs.get(address)
        job = old or QueuedJob(
            address, int(address.partition("_")[0]), state, "", 1, None, None, "", "", ""
        )
        self.jobs[address] = replace(job, state=state, **more)

    def live(self) -> list[QueuedJob]:
        return [job for job in self.jobs.values() if job.live]

        # --------------------------------------------------------------------------------------

    def queued(self) -> list[QueuedJob]:
        return list(self.jobs.values())

    def lives(self, job_ids: Any = (), *, since_s: float) -> list[JobLife]:
        wanted = set(job_ids)
        lives = [*self.ended.values(), *chain(*self.lives_of.values())]
        return [life for life in lives if int(life.address.partition("_")[0]) in wanted]

    def submit(self, script: Path, *options: str) -> int:
        self.next_id += 1
        given = dict(option.removeprefix("--").split("=", 1) for option in options)
        address = f"{self.next_id}_{given['array']}" if "array" in given else str(self.next_id)
        header = [
            line[10:] for line in script.read_text().splitlines() if line.startswith("#SBATCH --")
        ]
        lines = dict(line.partition("=")[::2] for line in header)
        self.put(
            address, "PENDING", name=lines["job-name"], work_dir=lines["chdir"], reason="Priority"
        )
        self.excluded[address] = given.get("exclude", "")
        return self.next_id

    def requeue(self, address: str) -> None:
        self.put(address, "PENDING", reason="BeginTime", start_time=time.time() + 121)

    def update(self, address: str, **fields: str) -> None:
        self.excluded[address] = fields["ExcNodeList"]

    def expedite(self, address: str) -> None:
        self.put(address, "PENDING", reason="Priority", start_time=None)

    def release(self, address: str) -> None:
        self.put(address, "PENDING", reason="Priority", start_time=None)

    def cancel(self, address: str) -> None:
        self.put(address, "CANCELLED")

    def config(self) -> dict[str, str]:
        return {"RequeueExit": self.requeue_exit}

    def is_awaited(self, address: str) -> bool:
        return address in self.awaited

    def hostnames(self, node_list: str) -> list[str]:
        return node_list.split(",")

    def call(self, *words: str) -> str:
        assert words[0] == "sinfo"
        return "".join(f"{name}|train*|{state}\n" for name, state in self.nodes.items())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "runs")
    fake.root.mkdir()

    def guarded(name: str) -> Any:
        def call(*words: Any, **more: Any) -> Any:
            fake.said.append(f"{name} {words[0] if words else ''}".strip())
            if fake.down:
                raise SlurmUnavailable("away")
            here = fake.kill_at is not None and fake.kill_at[0] == len(fake.said)
            if here and fake.kill_at == (len(fake.said), "before"):
                raise Killed
            answer = getattr(fake, name)(*words, **more)
            if here:
                raise Killed
            return answer

        return call

    for name in CALLS:
        monkeypatch.setattr(client, name, guarded(name))
    return fake


def make_run(
    slurm: FakeSlurm, path: str, *words: str, job: str | None = None, state: str = "RUNNING"
) -> RunLayout:
    """A run that was submitted an hour ago as `job`, which Slurm has in this state; an attempt
    began if it runs.
    """
    layout = RunLayout(slurm.root / path)
    layout.make_folders()
    sweep = "/" in path
    script = layout.path.parent / "job.sbatch" if sweep else layout.script
    name, folder = (
        (layout.path.parent.name, layout.path.parent) if sweep else (layout.name, layout.code)
    )
    script.write_text(f"#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --chdir={folder}\n")
    if sweep:
        layout.script.symlink_to("../job.sbatch")
    config = make_config(
        "cluster=local-slurm", "cluster.nodes=2", "cluster.gpus_per_node=2", *words
    )
    layout.config.write_text(json.dumps(to_dict(config)))
    layout.plan.write_text(json.dumps({"steps": 100, "nodes": 2}))
    if job is not None:
        write(layout, 3600, "submit", "submitted", job=job)
        slurm.put(job, state, name=name, work_dir=str(folder), start_time=time.time() - 3500)
    return layout


def write(layout: RunLayout, ago_s: float, writer: str, event: str, **facts: Any) -> None:
    """An event of the past."""
    line = json.dumps({"time": time.time() - ago_s, "event": event, **facts})
    with (layout.ledger / f"{writer}.jsonl").open("a") as file:
        file.write(line + "\n")


def attempt(layout: RunLayout, number: int, ago_s: float, *, step: int = 0, **ended: Any) -> None:
    """One that began so long ago, and how it ended if that is given."""
    writer = f"supervisor-{number:04d}"
    write(
        layout, ago_s, writer, "started", attempt=number, checkpoint_step=step, nodes=["n1", "n2"]
    )
    if ended:
        write(
            layout,
            ago_s - 10,
            writer,
            "ended",
            attempt=number,
            **{"gpu_hours": 0.1, "restart": False, **ended},
        )


def named(layout: RunLayout, event: str) -> list[Event]:
    return [found for found in read(layout.ledger) if found.event == event]


def life(address: str, state: str, nodes: str = "n1,n2") -> JobLife:
    now = time.time()
    return JobLife(
        address,
        int(address.partition("_")[0]),
        state,
        None,
        0,
        0,
        now - 3600,
        now - 3500,
        now - 60,
        nodes,
        "",
    )


def book(layout: RunLayout, writer: str = "supervisor-0001") -> Ledger:
    return Ledger(layout.ledger, writer)
