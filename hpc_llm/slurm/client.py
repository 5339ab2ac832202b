"""Query Slurm and give it orders: squeue, sacct, scontrol, sbatch. Standard library only.

One call asks for everything at once, and every call ends after a bounded time. A failed query
raises SlurmUnavailable: the answer is then unknown, never "gone". A request that Slurm understood
and refused raises SlurmRefused. Both carry Slurm's own words.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hpc_llm.slurm import records
from hpc_llm.slurm.records import Job, JobLife, QueuedJob

TIMEOUT_S = 60.0
EXPEDITE_AFTER_S = 3
_AGAIN_S = 2.0  # between two tries while slurmctld is down
_KEPT = {
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_CLUSTERS",
    "SLURM_JWT",
}  # which Slurm, not which job
_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCONTROL_", "SLURMD_")
# What Slurm says when it could not be asked (slurm_errno.c), in any release.
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed "
    r"out|reset|failure)"
    r"|communication connection failure|zero bytes were transmitted|unexpected message received"
    r"|backup controller|controller in standby|insane message length|temporarily unable to accept"
    r"|munge|authentication (plugin|credential)|protocol authentication|unable to connect to "
    r"database"
    r"|send/recv|receive operation|transport endpoint|resource temporarily unavailable|no route "
    r"to host"
    r"|unable to process configuration|configuration source|cannot stat file|problem talking to "
    r"the database",
    re.IGNORECASE,
)
# acct_policy.c: AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit, QOSMaxSubmitJobPerUserLimit, …
_SUBMIT_LIMIT = re.compile(r"(Assoc|QOS)(Max|Grp)SubmitJob\w*Limit")


class SlurmError(Exception):
    """One line in Slurm's own words."""


class SlurmUnavailable(SlurmError):
    """Slurm could not be reached, or did not answer in time: nothing is known."""


class SlurmRefused(SlurmError):
    """Slurm answered, and the answer is no."""


class LimitReached(SlurmRefused):
    """Refused because of a limit on jobs at once (MaxSubmitJobs or a similar limit of an
    association or a QOS).
    """


def refusal(said: str) -> SlurmRefused:
    """Slurm's refusal, in its own words."""
    return (LimitReached if _SUBMIT_LIMIT.search(said) else SlurmRefused)(said)


def queued(*, finished: bool = True) -> list[QueuedJob]:
    """One squeue for all of this user's jobs, a record per array task; `finished`: include recently
    finished ones.
    """
    states = ["--states=all"] if finished else []
    format_ = f"--format={records.SQUEUE_FIELDS}"
    words = ["--noheader", "--array", f"--user={os.getuid()}", *_federation()]
    return records.read_squeue(call("squeue", *words, *states, format_))


def lives(job_ids: Iterable[int] = (), *, since_s: float) -> list[JobLife]:
    """One sacct for all lives in the last `since_s` of jobs (arrays by their id; none given: all of
    this user's).
    """
    which = ",".join(str(job_id) for job_id in job_ids)
    words = [f"--jobs={which}"] if which else [f"--uid={os.getuid()}"]
    start = f"--starttime=now-{max(1, round(since_s))}seconds"
    fields = f"--format={records.SACCT_FIELDS}"
    words = [*words, *_federation()]
    text = call(
        "sacct", "--noheader", "--duplicates", "--allocations", "--parsable2", *words, start, fields
    )
    return records.read_sacct(text)


def _federation() -> list[str]:
    """A job may have been sent to a sibling cluster; without a federation this asks the only
    one.
    """
    return [] if "SLURM_CLUSTERS" in os.environ else ["--federation"]


def show(address: str) -> list[Job]:
    """`scontrol show job`: one record, one per task for an array's id, none if Slurm no longer
    knows the job.
    """
    try:
        return records.read_jobs(call("scontrol", "show", "job", "--oneliner", address))
    except SlurmRefused as error:
        if "invalid job id" in str(error).lower():
            return []
        raise


def update(address: str, **fields: str) -> None:
    """`scontrol update`, for example `update("12_3", ExcNodeList="n7")`."""
    call(
        "scontrol",
        "update",
        f"JobId={address}",
        *(f"{key}={value}" for key, value in fields.items()),
    )


def requeue(address: str) -> None:
    """`scontrol requeue`. Give `ARRAY_TASK` for a task: an array's own id would requeue all of
    it.
    """
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
    """Address of the job that `environment` belongs to: `12`, or `12_3` (the array's id would mean
    all its tasks).
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def requeue_own(
    address: str, *, patience_s: float = 120.0, ours: Callable[[], bool] = lambda: True
) -> str | None:
    """Requeue the job that this process runs in; how, or None if it is being ended or Slurm
    refuses.

    ours: whether the job of this address is still this process's own, asked before every try: one
    that Slurm has given up with its node may by now run elsewhere, under the same address.

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
            if job.state == "RUNNING":
                requeue(address)
                return "requeue"
        except SlurmRefused:
            return None
        except SlurmUnavailable:
            pass
        if time.monotonic() >= deadline:
            return None
        time.sleep(_AGAIN_S)
    return None


def node_address(host: str) -> str:
    """NodeAddr of a node, for a name that does not resolve."""
    said = records.fields_of(call("scontrol", "show", "node", "--oneliner", host))
    return said.get("NodeAddr", host)


def release(address: str) -> None:
    """Let a held job be scheduled again."""
    call("scontrol", "release", address)


def cancel(address: str) -> None:
    call("scancel", address)


def signal_steps(address: str, name: str) -> None:
    """A signal (TERM, KILL, …) to every task of a running job's steps; its batch shell gets
    none.
    """
    call("scancel", f"--signal={name}", address)


def config() -> dict[str, str]:
    """`scontrol show config`: MaxArraySize, JobRequeue, RequeueExit, KillWait, PreemptMode, …"""
    return records.read_config(call("scontrol", "show", "config"))


def hostnames(node_list: str) -> list[str]:
    """`n[1-2]` → [n1, n2]."""
    return call("scontrol", "show", "hostnames", node_list).split()


def submit(script: Path, *options: str) -> int:
    """`sbatch SCRIPT`; its job id. Options here override those in the script: `--array=3` submits
    only that task.
    """
    said = call("sbatch", "--parsable", *options, str(script))
    found = re.match(r"(\d+)", said.strip().splitlines()[-1] if said.strip() else "")
    if found is None:
        raise SlurmUnavailable(f"sbatch said no job id: {one_line(said)}")
    return int(found[1])


def test_only(text: str) -> str:
    """What Slurm would do with a batch script, without queueing it: `Job … to start at …`."""
    done = _run(["sbatch", "--test-only"], text)
    if done.returncode:
        raise _error(("sbatch",), done)
    return one_line(done.stderr + done.stdout)


def call(*words: str) -> str:
    """What a Slurm command prints. If it fails, SlurmUnavailable or SlurmRefused with its own
    words.
    """
    done = _run(list(words))
    if done.returncode:
        raise _error(words, done)
    return done.stdout


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without variables of an enclosing job or a shell's start-up file that set Slurm options: only
    ours count.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not name.startswith(_FOREIGN)
    }
    return {**kept, "LC_ALL": environment.get("LC_ALL", "C.UTF-8")}


def unreachable(words: str) -> bool:
    """Whether a command's message means that Slurm could not be reached, rather than that it
    refused.
    """
    return bool(_UNREACHABLE.search(words))


def _run(words: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(os.environ)
    if words[0] != "sbatch":  # whose environment becomes the job's
        environment |= {"SLURM_TIME_FORMAT": records.TIME_FORMAT, "SLURM_BITSTR_LEN": "0"}
    try:
        return subprocess.run(
            words,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{words[0]} is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{words[0]} gave no answer within {TIMEOUT_S:.0f} s") from None


def _error(words: Sequence[str], done: subprocess.CompletedProcess[str]) -> SlurmError:
    said = one_line(done.stderr or done.stdout) or f"no word why (exit status {done.returncode})"
    question = words[0] in ("squeue", "sacct") or words[1:2] == ("show",)
    known = "invalid job id" in said.lower() or not (
        question or done.returncode < 0 or unreachable(said)
    )
    return (SlurmRefused if known else SlurmUnavailable)(f"{words[0]}: {said}")


def one_line(text: str) -> str:
    """A command's message as one line, without the command's name before each part."""
    words = (
        re.sub(r"^(sbatch|squeue|sacct|scontrol|scancel): (error: )?", "", line)
        for line in text.splitlines()
    )
    return "; ".join(dict.fromkeys(word.strip() for word in words if word.strip()))
