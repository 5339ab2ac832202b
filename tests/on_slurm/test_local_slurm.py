"""tools/local_slurm: what it brings up is a Slurm, the faults are real ones, and nothing stays
behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

TOOL = Path(__file__).resolve().parents[2] / "tools" / "local_slurm"
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")


def processes_of(prefix: Path) -> list[str]:
    """Command lines of living processes that name the folder in their words, environment or working
    directory.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
            place = os.fsencode((entry / "cwd").readlink())
        except OSError:  # gone, or a zombie
            continue
        if any(os.fsencode(prefix) in text for text in (words, environment, place)):
            found.append(words.replace(b"\0", b" ").decode())
    return found


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that was refused."""
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_every_task_sees_the_gpus_of_its_job(slurm: SlurmCluster) -> None:
    out = slurm.work / "gpus.out"
    job = slurm.sbatch(
        "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", f"--output={out}",
        script='srun bash -c \'echo "$SLURMD_NODENAME $SLURM_LOCALID gpus=$CUDA_VISIBLE_DEVICES"\'',
    )  # fmt: skip
    slurm.wait_state(job, "COMPLETED")
    ranks = ["n1 0 gpus=0,1", "n1 1 gpus=0,1", "n2 0 gpus=0,1", "n2 1 gpus=0,1"]
    assert sorted(out.read_text().splitlines()) == ranks


def test_two_jobs_on_a_node_get_different_gpus(slurm: SlurmCluster) -> None:
    words = ["--nodelist=n1", "--gres=gpu:1", f"--output={slurm.work}/one-gpu-%j.out"]
    jobs = [
        slurm.sbatch(*words, script="echo gpus=$CUDA_VISIBLE_DEVICES; sleep 60") for _ in range(2)
    ]
    for job, gpu in zip(jobs, "01", strict=True):
        slurm.wait_text(slurm.work / f"one-gpu-{job}.out", f"gpus={gpu}\n")


def test_sacct_shows_a_finished_job(slurm: SlurmCluster) -> None:
    job = slurm.sbatch("--output=/dev/null", script="exit 3")
    slurm.wait_state(job, "FAILED")
    row = {"jobid": job, "state": "FAILED", "exitcode": "3:0"}
    until(
        lambda: slurm.sacct(job, fields="jobid,state,exitcode") == [row], 30, "sacct knows the job"
    )


def test_a_plain_user_submits_and_runs_as_himself(slurm: SlurmCluster) -> None:
    out = slurm.work / "plain.out"
    job = slurm.sbatch(
        "--gres=gpu:1", f"--output={out}", script="srun id --user --name", user="nobody"
    )
    slurm.wait_state(job, "COMPLETED")
    assert out.read_text().split() == ["nobody"]
    assert out.owner() == "nobody"


def test_env_is_for_eval(slurm: SlurmCluster) -> None:
    bare = {"PATH": os.environ["PATH"], "LOCAL_SLURM_DIR": str(slurm.prefix)}
    words = ["bash", "-c", 'eval "$("$0" env)"; scontrol ping; echo "$LOCAL_SLURM_DIR"', str(TOOL)]
    done = subprocess.run(words, env=bare, capture_output=True, text=True, check=True)
    assert "is UP" in done.stdout
    assert done.stdout.endswith(f"{slurm.prefix}\n")


def test_status_shows_daemons_nodes_and_jobs(slurm: SlurmCluster) -> None:
    slurm.wait_state(
        slurm.sbatch("--job-name=seen", "--output=/dev/null", "--wrap=sleep 60"), "RUNNING"
    )
    page = slurm.tool("status").stdout
    assert str(slurm.prefix) in page
    for word in (*DAEMONS, "n1", "n2", "seen"):
        assert word in page


def test_refusals_are_one_line_that_says_what_is_allowed(slurm: SlurmCluster) -> None:
    assert "already up at" in refusal(slurm.tool("up", check=False))
    assert "the nodes are n1, n2" in refusal(slurm.tool("kill-node", "n3", check=False))
    assert "runs already" in refusal(slurm.tool("revive-node", "n1", check=False))
    assert "no job id" in refusal(slurm.tool("preempt", "train", check=False))
    assert "other files" in refusal(slurm.tool("up", "--prefix", "/usr/share", check=False))
    assert "no cluster at" in refusal(
        slurm.tool("env", "--prefix", "/tmp/no-such-cluster", check=False)
    )
    assert "needs root" in refusal(slurm.run(str(TOOL), "up", user="nobody", check=False))


def test_preemption_requeues_after_the_grace(slurm: SlurmCluster) -> None:
    out = slurm.work / "preempted.out"
    job = slurm.sbatch(
        "--nodes=2", "--gres=gpu:2", "--requeue", "--open-mode=append", f"--output={out}",
        # It goes at the second SIGTERM only: one that ignored it too would hold its nodes for
        # KillWait, 30 s more.
        script="""[ -z "$SLURM_RESTART_COUNT" ] || exit 0
srun --overlap bash -c 'trap "echo notice; trap - TERM" TERM; echo up; while :; do sleep 0.2; done'""",  # noqa: E501
    )  # fmt: skip
    slurm.wait_text(out, "up\nup\n")  # so that no notice comes before its handler
    urgent = slurm.tool("preempt", job, "--hold", "1").stdout.strip()
    slurm.wait_text(out, "notice")
    slurm.wait_state(job, "RUNNING")  # the grace runs; newer releases show SIGNALING before
    # slurmctld looks every 30 s for graces that are over.
    slurm.wait_state(job, "PENDING", timeout_s=60)
    assert slurm.job(job)["Restarts"] == "1"
    slurm.wait_state(urgent, "COMPLETED", timeout_s=30)
    slurm.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    slurm.wait_state(job, "COMPLETED")


def test_slurmctld_goes_and_comes_while_a_job_runs(slurm: SlurmCluster) -> None:
    gate = slurm.work / "gate"
    job = slurm.sbatch("--output=/dev/null", script=f"until [ -e {gate} ]; do sleep 0.1; done")
    slurm.wait_state(job, "RUNNING")
    slurm.tool("ctld-stop")
    assert slurm.tool("status", check=False).returncode == 1
    assert "already up" in refusal(slurm.tool("up", check=False))
    gate.touch()
    slurm.tool("ctld-start")
    slurm.wait_state(job, "COMPLETED")


def test_a_killed_node_goes_down_and_comes_back(slurm: SlurmCluster) -> None:
    pid_file = slurm.work / "zombie.pid"
    job = slurm.sbatch(
        "--nodelist=n2",
        "--requeue",
        "--output=/dev/null",
        script=f"echo $$ > {pid_file}; exec sleep 300",
    )
    slurm.wait_text(pid_file, "\n")
    slurm.tool("kill-node", "n2")
    slurm.wait_node("n2", "down*", timeout_s=60)
    assert slurm.wait_state(job, "PENDING") and slurm.job(job)["Restarts"] == "1"
    pid = int(pid_file.read_text())
    assert is_alive(pid), "what ran on the node goes on running, as on a node that lost its network"
    slurm.tool("revive-node", "n2")
    slurm.wait_node("n2", "idle", timeout_s=30)


def test_a_site_of_another_kind(make_slurm: Callable[..., SlurmCluster]) -> None:
    site = make_slurm(
        "--nodes=1", "--gpus-per-node=1", "--preempt-mode=CANCEL", "--grace-time=0",
        "--no-accounting", "--no-requeue", "--max-array-size=8",
    )  # fmt: skip
    config = site.run("scontrol", "show", "config").stdout.split()
    keys = ("JobRequeue", "MaxArraySize", "PreemptMode")
    assert [config[config.index(key) + 2] for key in keys] == ["0", "8", "CANCEL"]
    assert (
        "Invalid job array" in site.run("sbatch", "--array=0-8", "--wrap=true", check=False).stderr
    )
    assert "disabled" in site.run("sacct", check=False).stderr
    job = site.sbatch("--gres=gpu:1", "--requeue", "--output=/dev/null", "--wrap=exec sleep 60")
    site.wait_state(job, "RUNNING")
    urgent = site.tool("preempt", job, "--hold", "0").stdout.strip()
    site.wait_state(job, "PREEMPTED")
    site.wait_state(urgent, "COMPLETED")


def test_where_a_qos_preempts(make_slurm: Callable[..., SlurmCluster]) -> None:
    site = make_slurm("--preempt-type=qos", "--grace-time=0")
    job = site.sbatch(
        "--nodes=2", "--gres=gpu:2", "--requeue", "--output=/dev/null", "--wrap=exec sleep 60"
    )
    site.wait_state(job, "RUNNING")
    urgent = site.tool("preempt", job, "--hold", "0").stdout.strip()
    site.wait_state(job, "PENDING")
    assert site.job(job)["Restarts"] == "1"
    site.wait_state(urgent, "COMPLETED")


def test_nothing_outlives_down_and_leftovers_do_not_matter(
    make_slurm: Callable[..., SlurmCluster],
) -> None:
    site = make_slurm("--nodes=1", "--no-accounting")
    # A child that leaves its session, as a data server might: only its environment tells whose it
    # is.
    site.sbatch("--output=/dev/null", "--wrap=setsid sleep 300 & exec sleep 300")
    until(
        lambda: processes_of(site.prefix).count("sleep 300 ") == 2,
        20,
        "both processes of the job run",
    )

    # The machine lost the daemons, as at a power cut; their pids now belong to somebody else.
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        for file in (site.prefix / "run").glob("*.pid"):
            if file.stem in ("munged", "slurmctld", "slurmd-n1"):
                os.kill(int(file.read_text()), signal.SIGKILL)
                file.write_text(f"{bystander.pid}\n")
        done = site.tool("up", "--nodes=1", "--no-accounting")
        assert "removed what was left" in done.stderr
        assert not any("sleep 300" in line for line in processes_of(site.prefix))
        assert site.squeue() == []
        site.tool("down")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert processes_of(site.prefix) == []
    assert not site.prefix.exists()
    assert "no cluster" in site.tool("down").stdout
