"""What Slurm's commands print → typed records. Pure functions of text, standard library only.

Fields are always requested explicitly, from squeue by format letters and from sacct by name, since
the shape of `--json` changes with every release. Times are asked for with their offset
(TIME_FORMAT) and become seconds since the epoch.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from datetime import datetime

SQUEUE_FIELDS = "%i|%A|%T|%r|%Q|%V|%S|%N|%j|%Z"  # the last may contain anything, even a `|`
# Of the last two the folder may contain anything, the name of a job of ours no `|`.
SACCT_FIELDS = "JobID,JobIDRaw,State,ExitCode,Submit,Start,End,NodeList,WorkDir,JobName"
# for SLURM_TIME_FORMAT, which Slurm gives to strftime if below 32 characters
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
_LOCAL_TIME = "%Y-%m-%dT%H:%M:%S"  # of a command that does not heed it
_LOCAL_LENGTH = 19

# Shown briefly instead of RUNNING.
_PASSING = ("SIGNALING", "RESIZING", "CONFIGURING", "POWER_UP_NODE")
# Shown instead of PENDING for a job that only a release lets go on.
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_WAITING = ("PENDING", *HELD, "REQUEUED", "REQUEUE_FED", "EXPEDITING", "COMPLETING")
# A job in one of these states runs, or Slurm leads it on to another state by itself.
_GOING_ON = (
    "RUNNING",
    *_PASSING,
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_FED",
    "EXPEDITING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
)
ENDED = frozenset(
    {
        "COMPLETED",
        "CANCELLED",
        "FAILED",
        "TIMEOUT",
        "PREEMPTED",
        "NODE_FAIL",
        "BOOT_FAIL",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "REVOKED",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
    }
)
_UNKNOWN = ("", "Unknown", "None", "N/A", "NONE", "(null)")
# sbatch's own line; the same behind a wrapper's prefix; with --parsable, `4711` or `4711;cluster`.
_SUBMITTED = (
    re.compile(r"^(?:sbatch: )?Submitted batch job (\d+)(?: on cluster \S+)?\.?$"),
    re.compile(r"\bSubmitted batch job (\d+)\b"),
    re.compile(r"^(\d+)(?:;\S+)?$"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one task of an array, as squeue shows it.

    It is queued, it runs, or it ended less than MinJobAge ago.
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
        """Whether it waits in the queue, held or not."""
        return self.state == "PENDING" or self.state in HELD

    @property
    def running(self) -> bool:
        """Whether Slurm says RUNNING, and none of the states that it shows briefly instead."""
        return self.state == "RUNNING"

    @property
    def waiting(self) -> bool:
        """Whether it waits in the queue, or is on its way there: what ends may be requeued."""
        return self.state in _WAITING

    @property
    def going_on(self) -> bool:
        """Whether it runs, or moves on to another state without anybody's help."""
        return self.state in _GOING_ON

    @property
    def array_id(self) -> int:
        """What sbatch printed: for a task the array's number, for `12+1` 12, else its own."""
        return _number(self.address)


@dataclass(frozen=True)
class JobLife:
    """One life of a job as sacct remembers it: a requeued job has several under one address."""

    address: str
    job_id: int
    state: str  # CANCELLED by UID is CANCELLED with `cancelled_by`
    cancelled_by: int | str | None  # uid, or a name where a site's sacct prints one
    exit_code: int
    exit_signal: int
    submit_time: float | None
    start_time: float | None
    end_time: float | None
    node_list: str
    name: str
    work_dir: str = ""  # empty: accounting does not say
    number: int | None = None  # how many lives the job had before; None: it is not known


@dataclass(frozen=True)
class Job:
    """One job or array task, as `scontrol show job` tells what squeue does not."""

    address: str
    state: str
    preempt_time: float | None  # set during the grace time of a preemption
    time_limit_s: float | None  # None: unlimited, or not known yet
    node_list: str
    requeue: bool = False  # whether Slurm may requeue it

    @property
    def running(self) -> bool:
        """Whether Slurm says RUNNING, and none of the states that it shows briefly instead."""
        return self.state == "RUNNING"

    @property
    def ending(self) -> bool:
        """Whether its allocation is being taken away."""
        return self.preempt_time is not None or self.state not in ("RUNNING", *_PASSING)


@dataclass(frozen=True)
class Submission:
    """What sbatch says of a script that it has accepted."""

    job_id: int  # for an array, the array's
    notes: tuple[str, ...] = ()  # the other lines: of a site's filter, of a wrapper around sbatch


def read_submission(text: str) -> Submission | None:
    """What sbatch printed; None where it names no job.

    A wrapper or a filter of the site may print before and after it, and mention other jobs:
    sbatch's own line counts, the last one of them, before a number that stands alone.
    """
    lines = [_COLOUR.sub("", line).strip() for line in text.splitlines()]
    for pattern in _SUBMITTED:
        for position in reversed(range(len(lines))):
            match = pattern.search(lines[position])
            if match is not None:
                notes = [*lines[:position], *lines[position + 1 :]]
                return Submission(int(match[1]), tuple(filter(None, notes)))
    return None


def read_squeue(text: str) -> list[QueuedJob]:
    """Lines of `squeue --noheader --array [--states=all] --format=SQUEUE_FIELDS`."""
    jobs = []
    for line in text.splitlines():
        cells = line.split("|", 9)
        if len(cells) < 10 or not cells[1].isdigit():
            continue  # `CLUSTER: name`, or a site's message
        address, job_id, state, reason, priority, submit, start, nodes, name, work_dir = cells
        job = QueuedJob(
            address=address,
            job_id=int(job_id),
            state=state,
            reason=reason,
            priority=int(priority),
            submit_time=seconds(submit),
            start_time=seconds(start),
            node_list=nodes,
            name=name,
            work_dir=work_dir,
        )
        jobs.append(job)
    return jobs


def read_sacct(text: str) -> list[JobLife]:
    """Lines of `sacct --noheader --parsable2 --allocations --duplicates --format=SACCT_FIELDS`.

    Pending tasks that share a line become one record each.
    """
    lives = []
    for line in text.splitlines():
        cells = line.split("|", 8)
        if len(cells) < 9:
            continue
        address, raw_id, state, exit_code, submit, start, end, nodes, rest = cells
        work_dir, _, name = rest.rpartition("|")
        state, _, by = state.partition(" by ")
        status, _, signal = exit_code.partition(":")
        life = JobLife(
            address=address,
            job_id=_number(raw_id),
            state=state.rstrip("+"),
            cancelled_by=int(by) if by.isdigit() else by.strip() or None,
            exit_code=_number(status),
            exit_signal=_number(signal),
            submit_time=seconds(submit),
            start_time=seconds(start),
            end_time=seconds(end),
            node_list="" if nodes == "None assigned" else nodes,
            name=name,
            work_dir=work_dir,
        )
        lives += [replace(life, address=task) for task in addresses(address)]
    return lives


def names_job(dependencies: str, address: str) -> bool:
    """Whether `afterok:12(unfulfilled),afterany:13_*…`, lines of squeue's %E, name the job.

    An array's own number, and `12_*`, mean all its tasks.
    """
    array = address.partition("_")[0]
    names = re.findall(r":(\d+(?:_(?:\d+|\*))?)", dependencies)
    return not {address, array, f"{array}_*"}.isdisjoint(names)


def read_jobs(text: str) -> list[Job]:
    """Lines of `scontrol show job --oneliner`.

    Pending tasks that share a line become one record each.
    """
    jobs = []
    for line in text.splitlines():
        fields = fields_of(line)
        if "JobId" in fields:
            jobs += [_job(address, fields) for address in _addresses_of(fields)]
    return jobs


def _addresses_of(fields: dict[str, str]) -> list[str]:
    array = fields.get("ArrayJobId")
    tasks = fields.get("ArrayTaskId", "N/A")
    if array is None or tasks == "N/A":
        return [fields["JobId"]]
    return addresses(f"{array}_{tasks}" if tasks.isdigit() else f"{array}_[{tasks}]")


def _job(address: str, fields: dict[str, str]) -> Job:
    def text(key: str) -> str:
        value = fields.get(key, "")
        return "" if value in _UNKNOWN else value

    return Job(
        address=address,
        state=text("JobState"),
        preempt_time=seconds(text("PreemptTime")),
        time_limit_s=duration(text("TimeLimit")),
        node_list=text("NodeList"),
        requeue=text("Requeue") == "1",
    )


def fields_of(line: str) -> dict[str, str]:
    """`Key=value Key=value …` of scontrol.

    Values may contain blanks, and even what looks like a field: the first value of a key counts.
    """
    fields: dict[str, str] = {}
    for part in re.split(r"\s+(?=[A-Z][A-Za-z_/:]*=)", line.strip()):
        key, _, value = part.partition("=")
        fields.setdefault(key, value.strip())
    return fields


def read_config(text: str) -> dict[str, str]:
    """`scontrol show config`: one `Name   = value` per line."""
    settings = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            settings[name.strip()] = value.strip()
    return settings


def addresses(text: str, most: int = 4_000_001) -> list[str]:
    """`12` → [12], `12_3` → [12_3], `12_[0-2,7%2]` → [12_0, 12_1, 12_2, 12_7].

    `12_[0-9:3]` is every third.
    """
    array, underscore, tasks = text.partition("_")
    if not underscore or not tasks.startswith("["):
        return [text]
    listed: list[str] = []
    for part in tasks.strip("[]").partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if not first.isdigit():  # `…`: Slurm shortened the list (SLURM_BITSTR_LEN)
            continue
        indices = range(int(first), int(last or first) + 1, int(step or 1))
        listed += [f"{array}_{index}" for index in indices[: most - len(listed)]]
    return listed


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
    """`1-02:03:04`, `02:03:04`, `03:04` or plain minutes as seconds; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, first, second, third = match.groups()
    if days is None and third is None:  # minutes and seconds
        return int(first) * 60 + int(second or 0)
    hours = int(days or 0) * 24 + int(first)
    return hours * 3600 + int(second or 0) * 60 + int(third or 0)


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0
