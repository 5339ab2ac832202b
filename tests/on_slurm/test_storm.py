"""Fault after fault at runs that nobody looks after but the watchdog: none is lost, and none ends
in other bits.

Every fault says what it may be called afterwards and how many attempts it may cost: one more is a
wrong restart.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.recovery import run_record
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.layout import RunLayout
from tests.chaos.local_runs import FAULTS, Finished, damage
from tests.on_slurm import slurm_runs
from tests.on_slurm.slurm_runs import SlurmRuns, pids_of_rank
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster, UndisturbedRun

pytestmark = pytest.mark.slurm

BUDGETS = [
    f"recovery.max_{what}=1000"
    for what in ("crashes", "hangs", "node_failures", "out_of_memory", "no_progress")
]


@dataclass(frozen=True)
class Kind:
    """A fault; what the attempts that it ends may have ended by, and how many there may be."""

    fire: Callable[[Storm], None]
    causes: frozenset[Cause] = frozenset()
    most: int = 0  # attempts

    @staticmethod
    def of(fire: Callable[[Storm], None], *causes: Cause, most: int = 1) -> Kind:
        return Kind(fire, frozenset(causes), most if causes else 0)


@dataclass
class Storm:
    """One run and what happens to it. Each fault returns once the run has got over it."""

    runs: SlurmRuns
    run: RunLayout
    last: int  # its steps
    draw: random.Random
    orders: Path
    fired: list[str] = field(default_factory=list)
    ended_by: dict[int, str] = field(default_factory=dict)  # attempt → the fault that ended it

    @property
    def attempt(self) -> int:
        return max(facts["attempt"] for facts in Finished(0, "", self.run).named("started"))

    def fire(self, kind: str) -> None:
        before = self.runs.steps(self.run)
        first = self.attempt
        KINDS[kind].fire(self)
        self.fired.append(kind)
        assert self.attempt - first <= KINDS[kind].most, (
            f"{kind} cost attempts {first} to {self.attempt - 1}"
        )
        self.ended_by |= dict.fromkeys(range(first, self.attempt), kind)
        assert self.runs.steps(self.run) < self.last, (
            f"the run was over before it had got over {kind}: {before}"
        )

    def until(self, condition: Callable[[], bool], what: str) -> None:
        self.runs.until(condition, f"{what}, after {[*self.fired, '…']}", 180)

    def ends_attempt(self, fault: Callable[[], None]) -> None:
        """`fault` happens, and a later attempt trains on from a checkpoint."""
        before = self.attempt
        fault()
        self.until(lambda: self.attempt > before, "another attempt")
        self.trains()

    def trains(self) -> None:
        """Steps are done by the newest attempt."""
        log = self.run.rank_log(self.attempt, 0)
        self.until(
            lambda: log.exists() and "going on from the checkpoint" in log.read_text(),
            "a resumed attempt",
        )
        before = self.run.metrics.stat().st_mtime
        self.until(lambda: self.run.metrics.stat().st_mtime > before, "further steps")

    def order(self, **fault: object) -> None:
        """A fault from within; see chaos/faults."""
        draft = self.orders.with_suffix(".draft")
        draft.write_text(json.dumps(fault))
        draft.rename(self.orders)

    def kill_rank(self) -> None:
        (pid,) = pids_of_rank(self.run.path, self.draw.randrange(2))
        os.kill(pid, signal.SIGKILL)

    def check_causes(self) -> None:
        """Each attempt ended by what was done to it, or because the run was complete; there are no
        others.
        """
        history = [
            end
            for end in run_record.read_record(self.run).summary.history
            if end.cause is not Cause.LAUNCH_FAILED
        ]
        found = {number: end.cause for number, end in enumerate(history, 1)}
        wrong = {
            n: (kind, found[n])
            for n, kind in self.ended_by.items()
            if found[n] not in KINDS[kind].causes
        }
        assert not wrong, wrong
        assert set(found) - set(self.ended_by) == {self.attempt}
        assert found[self.attempt] is Cause.COMPLETED

    def checkpoint(self) -> int:
        return manifest.newest_step(self.run.checkpoints)


def kill_rank(storm: Storm) -> None:
    storm.ends_attempt(storm.kill_rank)


def stop_rank(storm: Storm) -> None:
    hangs = len(Finished(0, "", storm.run).named("hang"))
    storm.ends_attempt(lambda: slurm_runs.stop_rank(storm.run.path, storm.draw.randrange(2)))
    assert len(Finished(0, "", storm.run).named("hang")) == hangs + 1


def lose_node(storm: Storm, which: int) -> None:
    node = Finished(0, "", storm.run).named("started")[-1]["nodes"][which]
    storm.ends_attempt(lambda: storm.runs.slurm.tool("kill-node", node))
    (storm.runs.slurm.prefix / "spool" / node / "cred_state").unlink(
        missing_ok=True
    )  # it boots from nothing
    storm.runs.slurm.tool("revive-node", node)
    storm.until(
        lambda: storm.runs.slurm.node_state(node) in ("idle", "mixed", "allocated"), f"{node} back"
    )


def preempt(storm: Storm, grace_s: int) -> None:
    storm.runs.slurm.run("scontrol", "update", "PartitionName=train", f"GraceTime={grace_s}")
    storm.ends_attempt(lambda: storm.runs.slurm.tool("preempt", storm.runs.job_of(storm.run)))


def time_limit(storm: Storm) -> None:
    job = storm.runs.job_of(storm.run)
    storm.ends_attempt(lambda: storm.runs.slurm.run("scancel", "--batch", "--signal=USR2", job))
    assert Finished(0, "", storm.run).named("requeued")


def damage_checkpoint(storm: Storm) -> None:
    """The newest one, and with nothing saved since, the run has to go back further."""
    rejected = len(Finished(0, "", storm.run).named("checkpoint-rejected"))

    def harm() -> None:
        for rank in range(2):  # so that they do not save a newer one meanwhile
            slurm_runs.stop_rank(storm.run.path, rank)
        damage(
            Finished(0, "", storm.run), storm.checkpoint(), storm.draw.choice(["truncate", "flip"])
        )
        for rank in range(2):
            for pid in pids_of_rank(storm.run.path, rank):
                os.kill(pid, signal.SIGKILL)

    storm.ends_attempt(harm)
    assert len(Finished(0, "", storm.run).named("checkpoint-rejected")) == rejected + 1


def fill_disk(storm: Storm) -> None:
    failed = len(Finished(0, "", storm.run).named("save-failed"))
    storm.order(rank=storm.draw.randrange(2), kind="full", after=100, times=1)
    storm.until(
        lambda: len(Finished(0, "", storm.run).named("save-failed")) > failed, "a save that failed"
    )
    before = storm.checkpoint()
    storm.until(lambda: storm.checkpoint() > before, "a save that did not")


def stop_slurmctld(storm: Storm) -> None:
    storm.runs.slurm.tool("ctld-stop")
    try:
        before = storm.runs.steps(storm.run)
        until(lambda: storm.runs.steps(storm.run) > before + 100, 60, "steps without slurmctld")
    finally:
        storm.runs.slurm.tool("ctld-start")


def kill_watchdog(storm: Storm) -> None:
    """What cron starts is killed in the middle of a pass that has a run to bring back; the next one
    does the work.
    """
    storm.runs.slurm.run("scontrol", "update", "PartitionName=train", "GraceTime=0")
    storm.ends_attempt(lambda: kill_passes(storm, storm.runs.job_of(storm.run)))


def kill_passes(storm: Storm, job: str) -> None:
    words = [storm.runs.python, "-m", "hpc_llm.watchdog", str(storm.runs.root), "--once"]
    began = time.monotonic()
    storm.runs.watch()
    whole_s = time.monotonic() - began
    storm.runs.slurm.tool("preempt", job)
    for _ in range(20):
        watchdog = subprocess.Popen(words, env=storm.runs.slurm.env)
        with contextlib.suppress(subprocess.TimeoutExpired):
            watchdog.wait(storm.draw.uniform(0.3, 0.9) * whole_s)
        watchdog.kill()
        if watchdog.wait() == -signal.SIGKILL:
            return
    pytest.fail("twenty passes ended before they were killed")


def fail_launches(storm: Storm) -> None:
    """The next node to be a batch host fails whatever is started on it, and the job has to start
    again.

    Of a job that comes back within two minutes Slurm 22.05 leaves out the prolog on workers, on
    nodes whose slurmd was started anew in between, and on a batch host now and then: it starts
    again until a prolog has run.
    """
    folder = storm.orders.parent
    (folder / "next-is-bad").touch()
    bad: list[str] = []
    try:
        for _ in range(TRIES):
            time_limit(storm)
            bad = [file.name.removeprefix("bad-") for file in folder.glob("bad-*")]
            if bad:
                break
        assert len(bad) == 1
        assert bad[0] not in Finished(0, "", storm.run).named("started")[-1]["nodes"]
    finally:
        for node in bad:
            (folder / f"bad-{node}").unlink()
            storm.runs.slurm.run(
                "scontrol", "update", f"NodeName={node}", "State=RESUME", check=False
            )


def diverge(storm: Storm) -> None:
    """The batch is left out: from here on the run is another one."""
    storm.ends_attempt(lambda: storm.order(rank=storm.draw.randrange(2), kind="nan"))


def exhaust_memory(storm: Storm) -> None:
    storm.ends_attempt(
        lambda: storm.order(rank=storm.draw.randrange(2), kind="raise", error="host-memory")
    )
    assert "out-of-memory" in [end["cause"] for end in Finished(0, "", storm.run).named("ended")]


TRIES = 5
DIVERGES = "a loss that is no number"
_NODE_LOST = (Cause.NODE_FAILURE, Cause.KILLED)
KINDS: dict[str, Kind] = {
    "a rank killed": Kind.of(kill_rank, Cause.KILLED),
    "a rank stopped": Kind.of(stop_rank, Cause.HANG),
    "the batch host lost": Kind.of(lambda storm: lose_node(storm, 0), *_NODE_LOST, most=2),
    "a worker lost": Kind.of(
        lambda storm: lose_node(storm, 1), *_NODE_LOST, most=2
    ),  # a step dies before its job
    "preempted with grace": Kind.of(lambda storm: preempt(storm, 5), Cause.PREEMPTED),
    "preempted without grace": Kind.of(lambda storm: preempt(storm, 0), Cause.PREEMPTED),
    "time limit": Kind.of(time_limit, Cause.TIME_LIMIT),
    "newest checkpoint damaged": Kind.of(damage_checkpoint, Cause.KILLED),
    "disk full in a save": Kind.of(fill_disk),
    "slurmctld down": Kind.of(stop_slurmctld),
    "watchdog killed": Kind.of(kill_watchdog, Cause.PREEMPTED),
    "host memory exhausted": Kind.of(exhaust_memory, Cause.OUT_OF_MEMORY),
    "a node that fails every launch": Kind.of(fail_launches, Cause.TIME_LIMIT, most=TRIES),
    DIVERGES: Kind.of(diverge, Cause.DIVERGED),
}
SAME_DATA = sorted(KINDS.keys() - {DIVERGES})


@pytest.fixture
def spare(make_slurm: Callable[..., SlurmCluster], tmp_path: Path) -> Iterator[SlurmRuns]:
    slurm = make_slurm("--nodes", "3", "--slurmd-timeout", "5")
    slurm.env |= {"PYTHONPATH": str(FAULTS), "HPC_LLM_FAULT_ORDERS": str(tmp_path / "orders")}
    slurm.configure_prolog(
        f"cd {shlex.quote(str(tmp_path))}\n"
        "mv next-is-bad bad-$SLURMD_NODENAME 2>/dev/null\n"  # whoever is first
        "[[ ! -e bad-$SLURMD_NODENAME ]]"
    )
    yield SlurmRuns(slurm, tmp_path / "runs")


def draw_faults(seed: int, count: int | None) -> list[str]:
    """Every kind that leaves the data alone, once and in an order of its own, or `count` of
    them.
    """
    draw = random.Random(seed)
    return (
        draw.sample(SAME_DATA, len(SAME_DATA))
        if count is None
        else draw.choices(SAME_DATA, k=count)
    )


@pytest.mark.parametrize("half", [0, 1])
def test_a_run_gets_over_every_kind_of_fault_one_after_the_other(
    spare: SlurmRuns, plain_long: Finished, tmp_path: Path, half: int
) -> None:
    weather(spare, plain_long, tmp_path, half, draw_faults(seed=1, count=None)[half::2])


def test_a_batch_that_diverges_is_left_out_between_other_faults(
    spare: SlurmRuns, plain: Finished, tmp_path: Path
) -> None:
    weather(spare, plain, tmp_path, 3, ["a rank killed", DIVERGES, "newest checkpoint damaged"])


@pytest.mark.long
@pytest.mark.parametrize("job", range(20))
def test_a_hundred_faults_and_no_run_is_lost(
    spare: SlurmRuns, undisturbed: UndisturbedRun, tmp_path: Path, job: int
) -> None:
    faults = draw_faults(seed=2, count=100)[job::20]
    lost_nodes = sum(fault.endswith("lost") for fault in faults)
    # Ranks train on for half a minute and more until Slurm notices that a node is lost.
    plain = undisturbed(f"of-{lost_nodes}-lost-nodes", 1500 + 500 * lost_nodes)
    weather(spare, plain, tmp_path, job, [*faults, DIVERGES] if job % 5 == 0 else faults)


def weather(runs: SlurmRuns, plain: Finished, folder: Path, seed: int, faults: list[str]) -> None:
    """A run under these faults ends as `plain`, one that nothing happened to; until a batch is left
    out, that is.
    """
    words = (
        f"train.duration={plain.last}steps",
        "checkpoint.every=100steps",
        "recovery.hang_floor_s=10",
        *BUDGETS,
    )
    run = runs.submit(
        "storm", *words, "recovery.on_divergence=skip", "recovery.max_divergences=1000"
    )
    storm = Storm(runs, run, plain.last, random.Random(seed), folder / "orders")
    runs.until_trained(run, 250)
    for kind in faults:
        storm.fire(kind)
    done = runs.finish(run, steps=plain.last)
    losses = done.losses
    undisturbed = plain.losses
    assert sorted(losses) == list(range(1, plain.last + 1))
    left_out = min((told["step"] for told in done.named("diverged")), default=None)
    same = [step for step in losses if losses[step] == undisturbed[step]]
    assert same == list(range(1, left_out or plain.last + 1))
    assert (done.final_state == plain.final_state) is (left_out is None)
    storm.check_causes()
