"""Query Slurm and give it orders: squeue, sacct, scontrol, sbatch. Standard library only.

One call asks for everything at once. A failed query raises SlurmUnavailable: the answer is then
unknown, never "gone". A request that Slurm understood and refused raises SlurmRefused. Both carry
Slurm's own words (command.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hpc_llm.slurm import command, records
from hpc_llm.slurm.command import LimitReached as LimitReached
from hpc_llm.slurm.command import SlurmError as SlurmError
from hpc_llm.slurm.command import SlurmRefused as SlurmRefused
from hpc_llm.slurm.command import SlurmUnavailable, call
from hpc_llm.slurm.records import Job, JobLife, QueuedJob

EXPEDITE_AFTER_S = 3


def queued(*, finished: bool = True) -> list[QueuedJob]:
    """One squeue for all of this user's jobs, a record per array task.

    finished: include those that ended a short while ago.
    """
    argv = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", *_federation()]
    if finished:
        argv.append("--states=all")
    return records.read_squeue(call(*argv, f"--format={records.SQUEUE_FIELDS}"))


def lives(job_ids: Iterable[int] = (), *, since_s: float) -> list[JobLife]:
    """One sacct for all lives of jobs in the last `since_s` seconds.

    job_ids: arrays by their own id, of this user alone; none: all of this user's jobs.
    """
    numbers = ",".join(map(str, job_ids))
    argv = ["sacct", "--noheader", "--duplicates", "--allocations", "--parsable2"]
    argv.append(f"--uid={os.getuid()}")
    if numbers:
        argv.append(f"--jobs={numbers}")
    since = f"--starttime=now-{max(1, round(since_s))}seconds"
    argv += [*_federation(), since, f"--format={records.SACCT_FIELDS}"]
    return records.read_sacct(call(*argv))


def _federation() -> list[str]:
    """Asks sibling clusters too, to which a job may have been sent; without any, the only one."""
    return [] if "SLURM_CLUSTERS" in os.environ else ["--federation"]


def is_awaited(address: str) -> bool:
    """Whether one of this user's waiting jobs depends on the job at `address`."""
    argv = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--states=PENDING"]
    return records.names_job(call(*argv, *_federation(), "--format=%E"), address)


def show(address: str) -> list[Job]:
    """`scontrol show job`: one record, or one per task for an array's id.

    None at all if Slurm no longer knows the job.
    """
    try:
        return records.read_jobs(call("scontrol", "show", "job", "--oneliner", address))
    except SlurmRefused as error:
        if "invalid job id" in str(error).lower():
            return []
        raise


def update(address: str, **fields: str) -> None:
    """`scontrol update`, for example `update("12_3", ExcNodeList="n7")`."""
    changes = [f"{key}={value}" for key, value in fields.items()]
    call("scontrol", "update", f"JobId={address}", *changes)


def requeue(address: str) -> None:
    """`scontrol requeue`. Name a task as `ARRAY_TASK`: an array's own id requeues all of it."""
    try:
        call("scontrol", "requeue", address)
    except SlurmRefused as error:
        if "pending execution" not in str(error).lower():  # that is the state it should be in
            raise


def expedite(address: str) -> None:
    """Let a requeued job that is PENDING start now, instead of after Slurm's 121 s (cred_expire).

    Not in the same second as its requeue: slurmd has revoked the job's credential as of then, by
    its own clock, says "already killed, do not launch" and the job is FAILED for good (measured on
    22.05.8: `now` in the same second lost 2 of 2 jobs, now+1 lost 0 of 3). The margin is for clock
    differences.
    """
    update(address, StartTime=f"now+{EXPEDITE_AFTER_S}")


def own_address(environment: Mapping[str, str]) -> str:
    """Address of the job that `environment` belongs to: `12`, or `12_3` for an array's task.

    The array's id alone would mean all its tasks.
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def requeue_own(
    address: str,
    *,
    patience_s: float = 120.0,
    ours: Callable[[], bool] = lambda: True,
    again_s: float = 2.0,
) -> str | None:
    """Requeue the job of this process; how, or None if it is being ended, or Slurm refuses.

    ours: whether the job of this address is still this process's own, asked before every try: one
    that Slurm has given up with its node may by now run elsewhere, under the same address.
    again_s: from one try to the next.

    COMPLETING means a scancel or a preemption, which Slurm ends in its own way; so does a running
    grace time (PreemptTime). Retried for `patience_s` while slurmctld is down, and while a signal
    is on its way to the job's steps, such as that of an abort a moment ago.
    """
    deadline = time.monotonic() + patience_s
    while ours():
        try:
            job = next(iter(show(address)), None)
            if job is None or job.ending:
                return None
            if job.running:
                requeue(address)
                return "requeue"
        except SlurmRefused:
            return None
        except SlurmUnavailable:
            pass
        if time.monotonic() >= deadline:
            return None
        time.sleep(again_s)
    return None


def node_address(host: str) -> str:
    """NodeAddr of a node, for a name that does not resolve."""
    fields = records.fields_of(call("scontrol", "show", "node", "--oneliner", host))
    return fields.get("NodeAddr", host)


def release(address: str) -> None:
    """Let a held job be scheduled again."""
    call("scontrol", "release", address)


def cancel(address: str) -> None:
    call("scancel", address)


def signal_steps(address: str, name: str) -> None:
    """Send a signal (TERM, KILL, …) to every task of a job's steps, not to its batch shell."""
    call("scancel", f"--signal={name}", address)


def config() -> dict[str, str]:
    """`scontrol show config`: MaxArraySize, JobRequeue, RequeueExit, KillWait, PreemptMode, …"""
    return records.read_config(call("scontrol", "show", "config"))


def hostnames(node_list: str) -> list[str]:
    """`n[1-2]` → [n1, n2]."""
    return call("scontrol", "show", "hostnames", node_list).split()


def submit(script: Path, *options: str) -> int:
    """`sbatch SCRIPT`; its job id. `--array=3` submits that task alone.

    Options given here override those in the script.
    """
    answer = call("sbatch", "--parsable", *options, str(script))
    submission = records.read_submission(answer)
    if submission is None:
        raise SlurmUnavailable(f"sbatch said no job id: {command.one_line(answer)}")
    return submission.job_id


def test_only(text: str) -> str:
    """What Slurm would do with a batch script, without queueing it: `Job … to start at …`."""
    return command.one_line(command.call_with_script(("sbatch", "--test-only"), text))
