"""What Slurm's commands print → typed records. Pure functions of text, standard library only.

Fields are always requested explicitly, from squeue by format letters and from sacct by name, since
the shape of `--json` changes with every release. Times are asked for with their offset
(TIME_FORMAT) and become seconds since the epoch.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from datetime import datetime

SQUEUE_FIELDS = "%i|%A|%T|%r|%Q|%V|%S|%N|%j|%Z"  # the last may contain anything, even a `|`
# for SLURM_TIME_FORMAT, which Slurm gives to strftime if below 32 characters
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
_LOCAL_TIME = "%Y-%m-%dT%H:%M:%S"  # of a command that does not heed it
_LOCAL_LENGTH = 19
SACCT_FIELDS = "JobID,JobIDRaw,State,ExitCode,Submit,Start,End,NodeList,JobName"

_PASSING = ("SIGNALING", "RESIZING", "CONFIGURING")  # shown briefly instead of RUNNING
# A job in one of these states runs, or Slurm leads it on to another state by itself.
_GOING_ON = (
    "RUNNING",
    *_PASSING,
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "STAGE_OUT",
    "SUSPENDED",
)
ENDED = frozenset(
    {
        *(
            "COMPLETED",
            "CANCELLED",
            "FAILED",
            "TIMEOUT",
            "PREEMPTED",
            "NODE_FAIL",
            "BOOT_FAIL",
            "DEADLINE",
        ),
        *("OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
    }
)
_UNKNOWN = ("", "Unknown", "None", "N/A", "NONE", "(null)")


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one task of an array, as squeue shows it: queued, running, or ended less than
    MinJobAge ago.
    """

    # `12`, `12_3` for task 3 of array 12, `12+1` in a heterogeneous job: what scontrol and scancel
    # take
    address: str
    job_id: int  # its own number, SLURM_JOB_ID; pending tasks of an array share the array's
    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str
    priority: int  # 0: held
    submit_time: float | None
    start_time: float | None  # of a pending job: the estimate
    node_list: str
    name: str
    work_dir: str

    @property
    def live(self) -> bool:
        """Whether it is queued or holds nodes."""
        return self.state not in ENDED

    @property
    def pending(self) -> bool:
        """Whether it waits in the queue."""
        return self.state == "PENDING"

    @property
    def running(self) -> bool:
        """Whether Slurm says RUNNING, and none of the states that it shows briefly instead."""
        return self.state == "RUNNING"

    @property
    def going_on(self) -> bool:
        """Whether it runs, or moves on to another state without anybody's help."""
        return self.state in _GOING_ON

    @property
    def array_id(self) -> int:
        """The number that sbatch printed: the array's for a task, its own for a single job, 12 for
        `12+1`.
        """
        return _number(self.address)


@dataclass(frozen=True)
class JobLife:
    """One life of a job as sacct remembers it: a requeued job has several under one address."""

    address: str
    job_id: int
    state: str  # CANCELLED by UID is CANCELLED with `cancelled_by`
    cancelled_by: int | None  # uid
    exit_code: int
    exit_signal: int
    submit_time: float | None
    start_time: float | None
    end_time: float | None
    node_list: str
    name: str


@dataclass(frozen=True)
class Job:
    """`scontrol show job`: one job or array task in full."""

    address: str
    job_id: int
    name: str
    state: str
    reason: str
    priority: int  # 0: held
    requeue: bool  # whether Slurm may requeue it
    restarts: int
    submit_time: float | None
    eligible_time: float | None  # of a requeued job: when its delay is over
    start_time: float | None
    end_time: float | None
    preempt_time: float | None  # set during the grace time of a preemption
    time_limit_s: float | None  # None: unlimited, or not known yet
    partition: str
    node_list: str
    batch_host: str
    exclude: str  # ExcNodeList
    work_dir: str
    fields: dict[str, str] = field(repr=False)  # everything, in Slurm's spelling

    @property
    def live(self) -> bool:
        return self.state not in ENDED

    @property
    def ending(self) -> bool:
        """Whether its allocation is being taken away."""
        return self.preempt_time is not None or self.state not in ("RUNNING", *_PASSING)


def read_squeue(text: str) -> list[QueuedJob]:
    """Lines of `squeue --noheader --array [--states=all] --format=SQUEUE_FIELDS`."""
    jobs = []
    for line in text.splitlines():
        parts = line.split("|", 9)
        if len(parts) == 10 and parts[1].isdigit():  # else `CLUSTER: name`, or a site's message
            address, job_id, state, reason, priority, submit, start, nodes, name, work_dir = parts
            times = seconds(submit), seconds(start)
            jobs.append(
                QueuedJob(
                    address,
                    int(job_id),
                    state,
                    reason,
                    int(priority),
                    *times,
                    nodes,
                    name,
                    work_dir,
                )
            )
    return jobs


def read_sacct(text: str) -> list[JobLife]:
    """Lines of `sacct --noheader --parsable2 --allocations --duplicates --format=SACCT_FIELDS`.

    Pending tasks that share a line become one record each.
    """
    lives = []
    for line in text.splitlines():
        parts = line.split("|", 8)
        if len(parts) != 9:
            continue
        name, raw, state, code, submit, start, end, nodes, job_name = parts
        word, _, by = state.partition(" by ")
        status, _, signal = code.partition(":")
        life = JobLife(
            address=name,
            job_id=_number(raw),
            state=word.rstrip("+"),
            cancelled_by=int(by) if by.isdigit() else None,
            exit_code=_number(status),
            exit_signal=_number(signal),
            submit_time=seconds(submit),
            start_time=seconds(start),
            end_time=seconds(end),
            node_list="" if nodes == "None assigned" else nodes,
            name=job_name,
        )
        lives += [replace(life, address=address) for address in addresses(name)]
    return lives


def read_jobs(text: str) -> list[Job]:
    """Lines of `scontrol show job --oneliner`; pending tasks that share a line become one Job
    each.
    """
    jobs = []
    for line in text.splitlines():
        fields = fields_of(line)
        if "JobId" not in fields:
            continue
        array = fields.get("ArrayJobId")
        tasks = fields.get("ArrayTaskId", "N/A")
        if array is None or tasks == "N/A":
            names = [fields["JobId"]]
        else:
            names = addresses(f"{array}_{tasks}" if tasks.isdigit() else f"{array}_[{tasks}]")
        jobs += [_job(name, fields) for name in names]
    return jobs


def _job(address: str, fields: dict[str, str]) -> Job:
    def text(key: str) -> str:
        value = fields.get(key, "")
        return "" if value in _UNKNOWN else value

    return Job(
        address=address,
        job_id=int(fields["JobId"]),
        name=text("JobName"),
        state=text("JobState"),
        reason=text("Reason"),
        priority=int(text("Priority") or 0),
        requeue=text("Requeue") == "1",
        restarts=int(text("Restarts") or 0),
        submit_time=seconds(text("SubmitTime")),
        eligible_time=seconds(text("EligibleTime")),
        start_time=seconds(text("StartTime")),
        end_time=seconds(text("EndTime")),
        preempt_time=seconds(text("PreemptTime")),
        time_limit_s=duration(text("TimeLimit")),
        partition=text("Partition"),
        node_list=text("NodeList"),
        batch_host=text("BatchHost"),
        exclude=text("ExcNodeList"),
        work_dir=text("WorkDir"),
        fields=fields,
    )


def fields_of(line: str) -> dict[str, str]:
    """`Key=value Key=value …` of scontrol. Values may contain blanks; the first value of a key
    counts.
    """
    fields: dict[str, str] = {}
    for part in re.split(r"\s+(?=[A-Z][A-Za-z_/:]*=)", line.strip()):
        key, _, value = part.partition("=")
        fields.setdefault(key, value.strip())
    return fields


def read_config(text: str) -> dict[str, str]:
    """`scontrol show config`: one `Name   = value` per line."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def addresses(text: str, most: int = 4_000_001) -> list[str]:
    """`12` → [12], `12_3` → [12_3], `12_[0-2,7%2]` → [12_0, 12_1, 12_2, 12_7], `12_[0-9:3]` → every
    third.
    """
    array, underscore, tasks = text.partition("_")
    if not underscore or not tasks.startswith("["):
        return [text]
    found: list[str] = []
    for part in tasks.strip("[]").partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if not first.isdigit():  # `…`: Slurm shortened the list (SLURM_BITSTR_LEN)
            continue
        indices = range(int(first), int(last or first) + 1, int(step or 1))
        found += [f"{array}_{index}" for index in indices[: most - len(found)]]
    return found


def seconds(text: str) -> float | None:
    """2026-11-23T13:40:28+0100 as seconds since the epoch; None if not known.

    Without an offset it is local time, of which an hour in autumn may be read as the wrong one of
    two.
    """
    try:
        if len(text) > _LOCAL_LENGTH:
            return datetime.strptime(text, TIME_FORMAT).timestamp()
        return time.mktime(time.strptime(text, _LOCAL_TIME))
    except (ValueError, OverflowError):
        return None


def duration(text: str) -> float | None:
    """`1-02:03:04`, `02:03:04`, `03:04` or plain minutes, as seconds; None for UNLIMITED and the
    like.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        return None
    days, first, second, third = (int(part) if part else None for part in found.groups())
    assert first is not None
    if third is not None or days is not None:
        return (days or 0) * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    return first * 60 + (second or 0)


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0
