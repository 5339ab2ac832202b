"""Whatever Slurm does to a job: the run reaches its end, bit for bit where an undisturbed one
does.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.recovery import node_evidence
from hpc_llm.recovery.node_evidence import node_scores
from hpc_llm.runs.layout import RunLayout
from tests.chaos.local_runs import FAULTS, Finished
from tests.on_slurm.slurm_runs import (
    LONG,
    LONG_STEPS,
    REPOSITORY,
    SlurmRuns,
    pids_of_rank,
    processes,
    stop_rank,
)
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def runs(slurm: SlurmCluster, tmp_path: Path) -> SlurmRuns:
    return SlurmRuns(slurm, tmp_path / "runs")


def assert_same(hurt: Finished, plain: Finished) -> None:
    assert sorted(hurt.losses) == list(range(1, plain.last + 1))
    assert hurt.losses == plain.losses
    assert hurt.final_state == plain.final_state


def preempted(runs: SlurmRuns, plain: Finished | None, attempts: int = 2) -> Finished:
    """A run that is preempted once, half-way; at its end."""
    run = runs.submit("preempted")
    runs.until_trained(run, 150)
    runs.slurm.tool("preempt", runs.job_of(run))
    runs.until(lambda: run.attempt(2).exists(), "a second attempt")
    done = runs.finish(run)
    if plain is not None:
        assert_same(done, plain)
    assert len(done.named("started")) == attempts
    assert done.named("resumed")[0]["step"] >= 150  # what was trained before the notice is not lost
    return done


def test_a_run_preempted_with_grace_saves_waits_is_requeued_and_expedited(
    runs: SlurmRuns, plain: Finished
) -> None:
    done = preempted(runs, plain)
    assert "waiting for Slurm to end the job" in done.layout.rank_log(1, 0).read_text()
    (expedited,) = done.named("expedited")
    assert "to wait after a requeue" in expedited["why"]
    assert done.named("started")[1]["job"] == done.named("started")[0]["job"]
    assert runs.status()["preempted"]["state"] == "completed"
    assert runs.status()["preempted"]["restarts"] == 1


@pytest.mark.parametrize("ranks", ["*", "0"])
def test_a_preemption_while_ranks_start_is_no_crash(runs: SlurmRuns, ranks: str) -> None:
    """Their container, or Python with its imports, dies of the notice. Starting them again in the
    grace is in vain.
    """
    begun = runs.slurm.work / f"{runs.root.parent.name}.begun"
    starter = (
        f'[[ $HPC_LLM_ATTEMPT-$SLURM_PROCID = 1-{ranks} ]] || exec "$@"; touch {begun}; '
        "exec sleep 300"
    )
    words = (
        f"cluster.wrapper=[bash,-c,'{starter}',starter]",
        "recovery.max_crashes=0",
        "train.duration=20steps",
    )
    run = runs.submit("early", *words)
    runs.until(begun.exists, "ranks that start")
    runs.slurm.tool("preempt", runs.job_of(run))
    done = runs.finish(run, steps=20)
    assert [end["cause"] for end in done.named("ended")] == ["preempted", "completed"]
    assert [facts["restarts"] for facts in done.named("started")] == [0, 1]


def test_a_run_preempted_without_grace_is_requeued_too_and_in_a_federation(
    make_slurm: Callable[..., SlurmCluster], tmp_path: Path, plain: Finished
) -> None:
    slurm = make_slurm("--grace-time", "0")
    (name,) = re.findall(r"ClusterName=(\S+)", (slurm.prefix / "etc" / "slurm.conf").read_text())
    slurm.run("sacctmgr", "--immediate", "add", "federation", "everyone", f"clusters={name}")
    until(
        lambda: "everyone" in slurm.run("scontrol", "show", "federation").stdout, 30, "a federation"
    )
    done = preempted(SlurmRuns(slurm, tmp_path), plain)
    assert {int(facts["job"]) >> 26 for facts in done.named("started")} == {
        1
    }  # the cluster's number within it


@pytest.mark.parametrize("grace", ["0", "5"])
def test_where_preemption_cancels_the_watchdog_submits_the_run_again(
    make_slurm: Callable[..., SlurmCluster], tmp_path: Path, plain: Finished, grace: str
) -> None:
    done = preempted(
        SlurmRuns(make_slurm("--preempt-mode", "CANCEL", "--grace-time", grace), tmp_path), plain
    )
    (again,) = done.named("resubmitted")
    assert again["why"] == "PREEMPTED"
    first, second = done.named("started")
    assert first["job"] != second["job"]


def test_a_site_without_accounting_that_requeues_nothing_by_itself_loses_no_run(
    make_slurm: Callable[..., SlurmCluster], tmp_path: Path, plain: Finished
) -> None:
    preempted(SlurmRuns(make_slurm("--no-accounting", "--no-requeue"), tmp_path), plain)


def test_a_plain_user_needs_no_root_for_any_of_it(slurm: SlurmCluster) -> None:
    user = "nobody"
    folder = slurm.work / "of-nobody"
    folder.mkdir(mode=0o700)
    os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    # This environment's interpreter may lie in root's closed home: the system's of the same version
    # will do.
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    if not Path(python).exists():
        pytest.skip(f"needs {python}, an interpreter that every user may run")
    packages = os.pathsep.join([str(REPOSITORY), sysconfig.get_paths()["purelib"]])
    before = slurm.env
    slurm.env = {
        **before,
        "HOME": str(folder),
        "PYTHONPATH": packages,
        "HPC_LLM_CACHE": str(folder / "cache"),
    }
    slurm.env["CXX"] = "no-compiler-for-nobody"
    try:
        runs = SlurmRuns(slurm, folder / "runs", user=user, python=python)
        preempted(runs, None)
        assert (runs.root / "preempted" / "metrics.jsonl").owner() == user
    finally:
        slurm.env = before


def test_a_run_that_meets_its_time_limit_twice_saves_before_it_and_goes_on(
    runs: SlurmRuns, plain: Finished
) -> None:
    """The notice is sent by hand, as Slurm sends it: `--signal=B:USR2` reaches the batch shell
    alone.
    """
    run = runs.submit("limited")
    for attempt in (1, 2):
        runs.until_trained(run, manifest.newest_step(run.checkpoints) + 100)
        runs.slurm.run("scancel", "--batch", "--signal=USR2", runs.job_of(run))
        runs.until(
            lambda number=attempt: run.attempt(number + 1).exists(), f"attempt {attempt + 1}"
        )
    done = runs.finish(run)
    assert_same(done, plain)
    assert [end["cause"] for end in done.named("ended")] == [
        "time-limit",
        "time-limit",
        "completed",
    ]
    assert [one["how"] for one in done.named("requeued")] == ["requeue"] * 2


def test_a_notice_that_comes_while_the_ranks_start_is_no_crash(runs: SlurmRuns) -> None:
    """They die of it, here in a container that takes its time: nobody listens yet."""
    slow = """cluster.wrapper=[sh,-c,'test $HPC_LLM_ATTEMPT != 1 || sleep 100; exec "$@"',sh]"""
    run = runs.submit("early", "train.duration=20steps", slow)
    runs.until(lambda: all(pids_of_rank(run.path, rank) for rank in (0, 1)), "ranks that start")
    runs.slurm.run("scancel", "--batch", "--signal=USR2", runs.job_of(run))
    done = runs.finish(run)
    assert [end["cause"] for end in done.named("ended")] == ["time-limit", "completed"]
    assert set(done.named("ended")[0]["exit_codes"].values()) == {-signal.SIGUSR2}


def test_slurm_itself_sends_the_notice_before_the_limit(runs: SlurmRuns) -> None:
    words = (
        "train.duration=1000000steps",
        "cluster.time_min=1",
        "cluster.signal_lead_s=20",
        "checkpoint.keep=2",
    )
    run = runs.submit("short", *words)
    runs.until(lambda: '"requeued"' in runs.ledger_text(run), "a requeue", 150)
    assert manifest.newest_step(run.checkpoints) > 0
    assert [one["cause"] for one in Finished(0, "", run).named("ended")] == ["time-limit"]


@pytest.fixture
def spare(make_slurm: Callable[..., SlurmCluster], tmp_path: Path) -> SlurmRuns:
    """A third node for the next attempt, where a node's death is noticed soon."""
    return SlurmRuns(make_slurm("--nodes", "3", "--slurmd-timeout", "5"), tmp_path / "runs")


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_dies_is_replaced_and_comes_back_while_the_next_attempt_runs(
    spare: SlurmRuns, plain_long: Finished, node: int
) -> None:
    """0 is the batch host, where the supervisor and rank 0 live on; 1 has the other rank."""
    run = spare.submit("bereft", LONG)
    spare.until_trained(run, 150)
    dead = Finished(0, "", run).named("started")[0]["nodes"][node]
    spare.slurm.tool("kill-node", dead)
    spare.until(lambda: resumed(run) == 1, "a second attempt that trains")
    spare.slurm.tool("revive-node", dead)
    done = spare.finish(run, steps=LONG_STEPS)
    assert_same(done, plain_long)
    assert dead not in done.named("started")[1]["nodes"]
    assert done.named("resumed")[0]["step"] > 0


def test_a_spare_node_takes_the_place_of_a_dead_one_without_the_queue(
    spare: SlurmRuns, plain_long: Finished
) -> None:
    run = spare.submit("spared", LONG, "cluster.spare_nodes=1")
    spare.until_trained(run, 150)
    first, dead = Finished(0, "", run).named("started")[0]["nodes"]
    spare.slurm.tool("kill-node", dead)
    spare.until(lambda: resumed(run) == 1, "a second attempt that trains")
    spare.slurm.tool("revive-node", dead)
    done = spare.finish(run, steps=LONG_STEPS)
    assert_same(done, plain_long)
    before, after = done.named("started")
    assert (after["job"], after["restarts"]) == (before["job"], 0)
    assert after["nodes"][0] == first and dead not in after["nodes"]
    ended = done.named("ended")[0]
    assert (ended["cause"], ended["node"], ended["action"]) == (
        "node-failure",
        dead,
        "restarted-without",
    )


def test_a_node_whose_rank_stays_behind_is_left_out_of_the_jobs_to_come(spare: SlurmRuns) -> None:
    faults = [{"attempt": 1, "rank": 1, "kind": "slow", "step": 10, "seconds": 0.02}]
    spare.slurm.env |= {"PYTHONPATH": str(FAULTS), "HPC_LLM_FAULTS": json.dumps(faults)}
    run = spare.submit("slow", "train.duration=400steps", "cluster.nodes=3", "train.global_batch=6")
    done = spare.finish(run, steps=400)
    (told,) = done.named("slow-rank")
    assert told["rank"] == 1 and told["factor"] > 1.5
    (standing,) = node_scores(node_evidence.read(spare.root), time.time(), exclusion_h=24, most=8)
    assert standing.node == done.named("started")[0]["nodes"][1]
    assert [seen.kind for seen in standing.evidence] == [
        "slow"
    ] and standing.excluded_until is not None


def test_ranks_that_train_on_where_slurm_believes_them_dead_write_nothing(
    spare: SlurmRuns, plain_long: Finished
) -> None:
    """The network's part is played by SIGSTOP: neither srun nor the supervisor hears that the node
    is lost.
    """
    run = spare.submit("undead", LONG, "cluster.nodes=1", "cluster.gpus_per_node=2")
    spare.until_trained(run, 150)
    (node,) = Finished(0, "", run).named("started")[0]["nodes"]
    deaf = processes(run.path, "hpc_llm.supervise") + processes(run.path, "srun")
    ranks = [pid for rank in (0, 1) for pid in pids_of_rank(run.path, rank)]
    assert len(deaf) >= 2 and len(ranks) == 2
    for pid in deaf:
        os.kill(pid, signal.SIGSTOP)
    spare.slurm.tool("kill-node", node)
    spare.until(lambda: resumed(run) == 1, "a second attempt that trains")
    spare.until(
        lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in ranks),
        "the first attempt's ranks gone",
    )
    for pid in deaf:
        os.kill(pid, signal.SIGCONT)
    spare.slurm.tool("revive-node", node)
    done = spare.finish(run, steps=LONG_STEPS)
    assert_same(done, plain_long)  # two numbers add up alike wherever their ranks run
    assert "is not the newest any more" in done.layout.rank_log(1, 0).read_text()
    assert spare.status()["undead"]["state"] == "completed"


def resumed(run: RunLayout) -> int:
    """How many attempts went on from a checkpoint."""
    return len(Finished(0, "", run).named("resumed"))


def test_a_slurmctld_that_is_away_for_a_while_costs_nothing(
    runs: SlurmRuns, plain_long: Finished
) -> None:
    run = runs.submit("headless", LONG)
    runs.until_trained(run, 100)
    runs.slurm.tool("ctld-stop")
    try:
        before = runs.steps(run)
        runs.watch()
        until(lambda: runs.steps(run) > before + 100, 60, "steps without slurmctld")
    finally:
        runs.slurm.tool("ctld-start")
    assert runs.steps(run) < LONG_STEPS
    done = runs.finish(run, steps=LONG_STEPS)
    assert_same(done, plain_long)
    assert len(done.named("started")) == 1


@pytest.mark.parametrize("phase", ["queued", "starting", "training", "saving", "grace"])
def test_a_run_that_its_user_cancels_stays_cancelled(
    runs: SlurmRuns, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "saving"
    if phase == "saving":  # a save that takes for ever on one rank
        fault = {"kind": "stall-save", "attempt": 1, "rank": 1, "event": 2, "mark": str(mark)}
        wanted = {"PYTHONPATH": str(FAULTS), "HPC_LLM_FAULTS": json.dumps([fault])}
        monkeypatch.setattr(runs.slurm, "env", runs.slurm.env | wanted)
    words = ["cluster.sbatch.hold=true"] if phase == "queued" else []
    run = runs.submit("cancelled", *words, "train.duration=1000000steps")
    job = runs.job_of(run)
    if phase == "starting":
        runs.until(lambda: run.attempt(1).exists(), "an attempt")
    elif phase in ("training", "grace"):
        runs.until_trained(run, 50)
    elif phase == "saving":
        runs.until(mark.exists, "a rank inside a save")
    if phase == "grace":
        runs.slurm.tool("preempt", job)
        runs.until(
            lambda: "PreemptTime=None" not in runs.slurm.run("scontrol", "show", "job", job).stdout,
            "grace",
        )
    runs.slurm.run("scancel", job)
    runs.until(
        lambda: runs.status()["cancelled"]["state"] == "cancelled", "cancelled in status", 120
    )
    for _ in range(3):
        runs.watch()
    assert runs.slurm.job(job)["JobState"] == "CANCELLED"
    assert '"resubmitted"' not in runs.ledger_text(run)
    assert not run.attempt(2).exists()


def test_of_an_array_only_the_preempted_task_is_requeued_and_all_end(runs: SlurmRuns) -> None:
    words = (
        "-m",
        "run.seed=range(6)",
        "cluster.array_throttle=2",
        "cluster.nodes=1",
        "run.sweep=six",
    )
    words = (*words, "train.duration=600steps", "cluster.gpus_per_node=1", "checkpoint.keep=2")
    runs.submit("array", *words)
    folders = sorted(path.parent for path in runs.root.glob("*/*/config.json"))
    assert len(folders) == 6
    first = next(iter_started(runs, folders))
    runs.slurm.tool("preempt", first["job"])
    runs.release()
    runs.until(
        lambda: all("completed" in row["state"] for row in runs.status().values()),
        "six complete",
        400,
    )
    restarts = {name: row["restarts"] for name, row in runs.status().items()}
    assert sum(restarts.values()) == 1, restarts


def iter_started(runs: SlurmRuns, folders: list[Path]) -> Any:
    """Facts of tasks that train."""
    found: list[dict[str, Any]] = []

    def trains() -> bool:
        for folder in folders:
            run = RunLayout(folder)
            if runs.steps(run) >= 20:
                found.extend(Finished(0, "", run).named("started"))
                return True
        return False

    runs.until(trains, "a task that trains")
    yield from found


def test_conf_and_source_edited_while_queued_and_between_attempts_change_nothing(
    slurm: SlurmCluster, tmp_path: Path, plain: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout of its own is submitted from, and vandalised twice."""
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "hpc_llm", checkout / "hpc_llm", symlinks=True)
    shutil.copytree(REPOSITORY / "conf", checkout / "conf")
    slurm.env = {**slurm.env, "PYTHONPATH": str(checkout)}
    runs = SlurmRuns(slurm, tmp_path / "runs")
    run = runs.submit("frozen", "cluster.sbatch.hold=true")
    slurm.env = {name: value for name, value in slurm.env.items() if name != "PYTHONPATH"}
    (checkout / "conf" / "optim" / "torch_adam.yaml").write_text("name: torch_adam\nlr: 1000\n")
    (checkout / "hpc_llm" / "model" / "transformer.py").write_text("raise SystemExit('edited')\n")
    runs.slurm.run("scontrol", "release", runs.job_of(run))
    runs.until_trained(run, 150)
    (checkout / "hpc_llm" / "train.py").write_text("raise SystemExit('edited')\n")
    runs.slurm.run("scancel", "--batch", "--signal=USR2", runs.job_of(run))
    done = runs.finish(run)
    assert_same(done, plain)
    assert len(done.named("started")) == 2


def test_a_rank_that_dies_is_started_again_in_the_same_allocation(
    runs: SlurmRuns, plain: Finished
) -> None:
    run = runs.submit("crashed")
    runs.until_trained(run, 300)
    (pid,) = pids_of_rank(run.path, 1)
    os.kill(pid, signal.SIGKILL)
    done = runs.finish(run)
    assert_same(done, plain)
    assert [end["cause"] for end in done.named("ended")] == ["killed", "completed"]
    assert done.named("ended")[0]["first_failed"] == 1
    first, second = done.named("started")
    assert first["job"] == second["job"] and second["restarts"] == 0


def test_a_rank_that_stops_answering_is_found_and_the_step_started_again(
    runs: SlurmRuns, plain: Finished
) -> None:
    run = runs.submit("hung", "recovery.hang_floor_s=10")
    runs.until_trained(run, 300)
    stop_rank(run.path, 1)
    done = runs.finish(run)
    assert_same(done, plain)
    (hang,) = done.named("hang")
    assert hang["phase"] == "training"
    assert [end["cause"] for end in done.named("ended")] == ["hang", "completed"]
    for rank in range(2):
        assert "Fatal Python error: Aborted" in run.rank_log(1, rank).read_text()
    first, second = done.named("started")
    assert first["job"] == second["job"] and second["restarts"] == 0


def test_ranks_that_are_told_of_an_end_which_nobody_brings_start_again(
    runs: SlurmRuns, plain: Finished
) -> None:
    """scancel --signal=TERM is the word of a preemption to them: they save and hold."""
    run = runs.submit("held")
    runs.until_trained(run, 300)
    runs.slurm.run("scancel", "--signal=TERM", runs.job_of(run))
    runs.until(
        lambda: "waiting for Slurm to end the job" in run.rank_log(1, 0).read_text(),
        "ranks that hold",
    )
    done = runs.finish(run)
    assert_same(done, plain)
    assert len(done.named("held-in-vain")) == 1
    assert [end["cause"] for end in done.named("ended")] == ["killed", "completed"]
    first, second = done.named("started")
    assert first["job"] == second["job"] and second["restarts"] == 0
