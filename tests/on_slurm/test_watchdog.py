"""The watchdog, and successors in its place, on a real Slurm. The supervisor is a stand-in that
does as it is told.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpc_llm.recovery import node_evidence
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).resolve().parents[2]
# In place of the job's Python: an attempt that lives until RUN_DIR/do says how it ends.
STAND_IN = """#!/bin/bash
run=${!#}
[[ $2 == hpc_llm.supervise ]] || exec %(python)s "$@"
job=$SLURM_JOB_ID
[[ -z $SLURM_ARRAY_TASK_ID ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
number=$(( $(ls "$run/attempts" | wc -l) + 1 ))
mkdir "$run/attempts/$(printf %%04d $number)"
book="$run/ledger/supervisor-$(printf %%04d $number).jsonl"
echo '{"time": '$(date +%%s.%%N)', "event": "started", "attempt": '$number', "checkpoint_step": '$((number * 10))',' \\
  '"job": "'$job'", "restarts": 0, "nodes": ["'$SLURM_JOB_NODELIST'"]}' >>"$book"
while [[ ! -s $run/do ]]; do touch "$run/heartbeats/supervisor"; sleep 0.2; done
word=$(<"$run/do")
rm "$run/do"
if [[ $word == complete ]]; then
  echo '{"time": '$(date +%%s.%%N)', "event": "completed", "attempt": '$number'}' >>"$book"
  exit 0
fi
exit $word
"""  # noqa: E501


class Runs:
    """Runs of the stand-in below one root."""

    def __init__(self, slurm: SlurmCluster, folder: Path, shards: Path) -> None:
        self.slurm = slurm
        self.root = folder / "runs"
        python = folder / "python"
        python.write_text(STAND_IN % {"python": shlex.quote(sys.executable)})
        python.chmod(0o755)
        self._words = [
            "+cluster=local-slurm",
            "optim=torch_adam",
            "model.d_model=64",
            "train.global_batch=4",
        ]
        self._words += [
            "cluster.nodes=1",
            "cluster.gpus_per_node=1",
            f"data.out={shards}",
            f"run.root={self.root}",
        ]
        self._words += [f"cluster.python={python}"]
        self.environment = {**slurm.env, "PYTHONPATH": str(REPOSITORY)}

    def python(self, *words: str, **environment: str) -> str:
        before = self.slurm.env
        self.slurm.env = {**self.environment, **environment}
        try:
            return self.slurm.run(sys.executable, *words, check=not environment).stdout
        finally:
            self.slurm.env = before

    def submit(self, *words: str) -> list[tuple[str, RunLayout]]:
        said = self.python("-m", "hpc_llm.submit", *self._words, *words, "json=true")
        return [(job["job"], RunLayout(Path(job["run_dir"]))) for job in json.loads(said)]

    def watch(self, **environment: str) -> str:
        return self.python("-m", "hpc_llm.watchdog", str(self.root), "--once", **environment)

    def status(self, *words: str) -> Any:
        return json.loads(self.python("-m", "hpc_llm.status", str(self.root), "--json", *words))

    def until(
        self, condition: Callable[[], Any], what: str, timeout_s: float = 60, *, watch: bool = False
    ) -> None:
        def met() -> bool:
            if watch:
                self.watch()
            return bool(condition())

        until(met, timeout_s, what)

    def jobs(self) -> dict[str, str]:
        """State of every job in the queue, by address."""
        rows = self.slurm.squeue("--array", fields="%i %T")
        return {row[0]: row[1] for row in rows}


def named(run: RunLayout, event: str) -> list[dict[str, Any]]:
    return [found.facts for found in ledger.read(run.ledger) if found.event == event]


def tell(run: RunLayout, word: str) -> None:
    """How the attempt is to end."""
    (run.path / "do.new").write_text(word)
    (run.path / "do.new").rename(run.path / "do")


@pytest.fixture
def runs_on(tmp_path: Path, shards: Path) -> Callable[[SlurmCluster], Runs]:
    return lambda slurm: Runs(slurm, tmp_path, shards)


@pytest.fixture
def runs(slurm: SlurmCluster, runs_on: Callable[[SlurmCluster], Runs]) -> Runs:
    return runs_on(slurm)


def test_a_node_that_fails_every_launch_is_left_out_and_the_held_job_released(
    make_slurm: Callable[..., SlurmCluster], runs_on: Callable[[SlurmCluster], Runs]
) -> None:
    slurm = make_slurm("--nodes", "3")
    runs = runs_on(slurm)
    slurm.configure_prolog("[[ $SLURMD_NODENAME != n1 ]]")
    ((job, run),) = runs.submit("run.name=unlucky")
    runs.until(
        lambda: "held" in slurm.job(job)["Reason"].lower(), f"job {job} held; {slurm.job(job)}"
    )
    runs.until(lambda: named(run, "released"), "a release", watch=True)
    assert named(run, "released")[0]["nodes"] == ["n1"]
    assert named(run, "excluded")[0]["nodes"] == ["n1"]
    assert slurm.job(job)["ExcNodeList"] == "n1"
    runs.until(lambda: named(run, "started"), "an attempt", 90, watch=True)
    assert named(run, "started")[0]["nodes"] != ["n1"]
    (node,) = runs.status("--nodes")
    assert node["node"] == "n1" and node["excluded_until"] is not None
    runs.python("-m", "hpc_llm.status", str(runs.root), "--clear-node", "n1")
    assert runs.status("--nodes") == []
    tell(run, "complete")
    runs.until(lambda: runs.status()[0]["state"] == "completed", "completed")


def test_a_node_that_is_left_out_comes_back_where_another_one_dies(
    make_slurm: Callable[..., SlurmCluster], runs_on: Callable[[SlurmCluster], Runs]
) -> None:
    """The run needs two of three nodes: a node that may be bad is better than none."""
    slurm = make_slurm("--nodes", "3", "--slurmd-timeout", "5")
    runs = runs_on(slurm)
    others = slurm.sbatch("--nodes=3", "--exclusive", script="sleep 600")
    slurm.wait_state(others, "RUNNING")
    ((job, run),) = runs.submit("run.name=patient", "cluster.nodes=2")
    runs.watch()
    node_evidence.report(runs.root, "n1", "gpu-fault", run="another", attempt=1)
    runs.watch()
    assert slurm.job(job)["ExcNodeList"] == "n1"
    slurm.tool("kill-node", "n2")
    runs.until(
        lambda: slurm.node_state("n2").startswith("down"), f"n2 down: {slurm.node_state('n2')}", 90
    )
    slurm.run("scancel", others)
    runs.until(lambda: named(run, "started"), "an attempt", 90, watch=True)
    assert named(run, "readmitted")[0]["nodes"] == ["n1"]
    assert named(run, "started")[0]["nodes"] == ["n[1,3]"]
    tell(run, "complete")
    runs.until(lambda: runs.status()[0]["state"] == "completed", "completed")


def test_tasks_that_wait_are_spared_a_node_that_goes_bad_meanwhile(
    make_slurm: Callable[..., SlurmCluster], runs_on: Callable[[SlurmCluster], Runs]
) -> None:
    slurm = make_slurm("--nodes", "3")
    runs = runs_on(slurm)
    others = slurm.sbatch("--nodes=3", "--exclusive", script="sleep 600")
    slurm.wait_state(others, "RUNNING")
    sweep = runs.submit("-m", "run.seed=1,2")
    runs.watch()
    node_evidence.report(runs.root, "n1", "gpu-fault", run="another", attempt=1)
    runs.watch()
    assert [slurm.job(job)["ExcNodeList"] for job, _ in sweep] == ["n1", "n1"]
    slurm.run("scancel", others)
    for _, run in sweep:
        runs.until(lambda run=run: named(run, "started"), "an attempt", 90)  # type: ignore[misc]
        assert named(run, "started")[0]["nodes"] != ["n1"]
        tell(run, "complete")


def test_what_the_user_holds_stays_held(runs: Runs) -> None:
    ((job, run),) = runs.submit("run.name=held", "cluster.sbatch.hold=true")
    for _ in range(2):
        assert runs.watch() == ""
    assert runs.slurm.job(job)["Reason"] == "JobHeldUser"
    assert [event.event for event in ledger.read(run.ledger)] == ["submitted"]


def test_a_watchdog_killed_between_sbatch_and_its_ledger_sends_nothing_twice(
    runs: Runs, tmp_path: Path
) -> None:
    jobs = runs.submit("run.name=s", "run.seed=1,2", "-m")
    runs.until(lambda: all(named(run, "started") for _, run in jobs), "two attempts")
    for _, run in jobs:
        tell(run, "9")
    runs.until(lambda: not runs.jobs(), "an empty queue")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        f'#!/bin/bash\n{shlex.quote(str(shutil.which("sbatch")))} "$@" >/dev/null\nkill -KILL '
        "$PPID\n"
    )
    (folder / "sbatch").chmod(0o755)
    killing = f"{folder}:{os.environ['PATH']}"
    runs.watch(PATH=killing)
    assert len(runs.jobs()) == 1
    runs.until(
        lambda: all(len(named(run, "started")) == 2 for _, run in jobs),
        "both started again",
        90,
        watch=True,
    )
    assert {named(run, "started")[1]["job"] for _, run in jobs} == set(runs.jobs())
    runs.watch()
    assert len(runs.jobs()) == 2


def test_two_watchdogs_at_once_send_one_job(runs: Runs) -> None:
    ((_, run),) = runs.submit("run.name=one")
    runs.until(lambda: named(run, "started"), "an attempt")
    tell(run, "9")
    runs.until(lambda: not runs.jobs(), "an empty queue")
    command = [sys.executable, "-m", "hpc_llm.watchdog", str(runs.root), "--once"]
    pair = [subprocess.Popen(command, env=runs.environment) for _ in range(4)]
    assert [process.wait(60) for process in pair] == [0] * 4
    assert len(runs.jobs()) == 1
    assert len(named(run, "resubmitted")) == 1


def test_a_run_that_failed_for_good_is_not_kept_going_by_the_sites_requeue_exit(
    runs: Runs, slurm: SlurmCluster
) -> None:
    conf = slurm.prefix / "etc" / "slurm.conf"
    before = conf.read_text()
    conf.write_text(before + "RequeueExit=1\n")
    slurm.run("scontrol", "reconfigure")
    try:
        ((job, run),) = runs.submit("run.name=bad")
        runs.until(lambda: named(run, "started"), "an attempt")
        ledger.Ledger(run.ledger, "supervisor-0001").write(
            "ended", attempt=1, cause="config-error", restart=False
        )
        tell(run, "1")
        runs.until(lambda: runs.jobs().get(job) == "PENDING", "queued again by Slurm")
        runs.watch()
        runs.until(lambda: not runs.jobs(), "an empty queue")
        assert named(run, "withdrawn")[0]["job"] == job
        assert runs.status()[0]["state"] == "failed"
    finally:
        conf.write_text(before)
        slurm.run("scontrol", "reconfigure")


def test_a_successor_takes_over_and_a_scancel_is_final_with_no_watchdog_anywhere(
    runs: Runs,
) -> None:
    ((job, run),) = runs.submit("run.name=one", "recovery.successor=true")
    runs.until(lambda: named(run, "started"), "an attempt")
    (second,) = [address for address, state in runs.jobs().items() if state == "PENDING"]
    assert runs.slurm.job(second)["Dependency"].startswith(f"afterany:{job}")
    tell(run, "9")
    runs.until(lambda: len(named(run, "started")) == 2, "a second attempt")
    (taken,) = named(run, "resubmitted")
    assert (taken["job"], taken["why"]) == (second, "FAILED")
    runs.until(lambda: len(named(run, "successor")) == 2, "the next successor")
    runs.slurm.run("scancel", second)
    runs.until(lambda: named(run, "cancelled"), "the successor's word")
    runs.until(lambda: not runs.jobs(), "an empty queue")
    assert len(named(run, "started")) == 2
    assert runs.status()[0]["state"] == "cancelled"


def test_a_job_that_is_requeued_keeps_its_one_successor(runs: Runs) -> None:
    ((job, run),) = runs.submit("run.name=one", "recovery.successor=true")
    runs.until(lambda: named(run, "started"), "an attempt")
    runs.slurm.run("scontrol", "requeue", job)
    runs.until(lambda: len(named(run, "started")) == 2, "a second attempt", watch=True)
    (successor,) = named(run, "successor")
    assert runs.jobs() == {job: "RUNNING", successor["job"]: "PENDING"}
    assert named(run, "expedited")[0]["job"] == job
    assert named(run, "resubmitted") == []
    tell(run, "complete")
    runs.until(lambda: not runs.jobs(), "an empty queue")
    assert len(named(run, "started")) == 2


def test_of_an_array_each_task_has_a_successor_of_its_own(runs: Runs) -> None:
    jobs = runs.submit("run.name=s", "run.seed=1,2", "-m", "recovery.successor=true")
    runs.until(lambda: all(named(run, "started") for _, run in jobs), "two attempts")
    (_, done), (_, bad) = jobs
    tell(bad, "9")
    runs.until(lambda: len(named(bad, "started")) == 2, "the task's second attempt")
    assert named(bad, "resubmitted")[0]["job"] == named(bad, "successor")[0]["job"]
    assert len(named(done, "started")) == 1
    tell(done, "complete")
    tell(bad, "complete")
    runs.until(lambda: not runs.jobs(), "an empty queue", 90)
    assert {row["state"] for row in runs.status()} == {"completed"}
    assert (len(named(done, "started")), len(named(bad, "started"))) == (1, 2)


def test_a_watchdog_leaves_a_run_to_its_successor_and_withdraws_one_that_is_needless(
    runs: Runs,
) -> None:
    ((_, run),) = runs.submit("run.name=one", "recovery.successor=true")
    runs.until(lambda: named(run, "successor") and named(run, "started"), "an attempt")
    runs.slurm.run("scontrol", "hold", named(run, "successor")[0]["job"])
    runs.watch()
    tell(run, "complete")
    runs.until(lambda: named(run, "withdrawn"), "the successor's end", watch=True)
    runs.until(lambda: not runs.jobs(), "an empty queue")
    assert named(run, "resubmitted") == []
