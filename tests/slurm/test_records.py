"""Slurm's output → records, on what real commands printed.

That is of 22.05.8, and newer spellings where they differ.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.slurm import records

AT = "2026-11-23T13:40:28"
EPOCH = time.mktime((2026, 11, 23, 13, 40, 28, 0, 0, -1))

SQUEUE = f"""\
CLUSTER: local
2_1|2|PENDING|JobArrayTaskLimit|4294901758|{AT}|N/A||s|/tmp/sub
4_0|4|PENDING|JobHeldUser|0|{AT}|N/A||a.sh|/tmp/sub
1|1|RUNNING|None|4294901759|{AT}|{AT}|n[1-2]|one|/tmp/a|b
2_0|3|COMPLETED|None|4294901758|{AT}|{AT}|n1|s|/tmp/sub
9+0|9|RUNNING|None|4294901755|{AT}|{AT}|n1|wrap|/tmp/sub
9+1|10|RUNNING|None|4294901755|{AT}|{AT}|n2|wrap|/tmp/sub
slurm_load_jobs: this site says something
"""
SACCT = f"""\
1|1|PREEMPTED|0:0|{AT}|{AT}|{AT}|n[1-2]|/runs/one/code|one
1|1|NODE_FAIL|1:0|{AT}|{AT}|{AT}|n[1-2]|/runs/one/code|one
1|1|RUNNING|0:0|{AT}|{AT}|Unknown|n[1-2]|/runs/one/code|one
2_[1-2,5%2]|2|PENDING|0:0|{AT}|Unknown|Unknown|None assigned|/runs/s|s
2_0|3|CANCELLED by 1000|0:15|{AT}|{AT}|{AT}|n1|/a|b/code|c
7|7|FAILED|85:0|{AT}|None|{AT}|None assigned||c
"""
RUNNING = (
    "JobId=1 JobName=one UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 "
    "Account=root QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:01 TimeLimit=1-00:00:00 TimeMin=N/A "
    f"SubmitTime={AT} EligibleTime={AT} AccrueTime={AT} StartTime={AT} EndTime={AT} Deadline=N/A "
    f"PreemptEligibleTime={AT} PreemptTime={AT} SuspendTime=None SecsPreSuspend=0 Scheduler=Main "
    "Partition=train AllocNode:Sid=localhost:29850 ReqNodeList=(null) ExcNodeList=n7 "
    "NodeList=n[1-2] BatchHost=n1 NumNodes=2 NumCPUs=4 NumTasks=4 CPUs/Task=1 ReqB:S:C:T=0:0:*:* "
    "TRES=cpu=1,mem=1000M,node=1,billing=1 Command=/tmp/my runs/job.sbatch WorkDir=/tmp/my "
    "runs/code Comment=a b=c JobState=FAKE  StdErr=/tmp/slurm-1.out Power= "
)
WAITING = (
    "JobId=4 ArrayJobId=4 ArrayTaskId=0-2%1 ArrayTaskThrottle=1 JobName=a.sh Priority=0 "
    "JobState=PENDING Reason=JobHeldUser Requeue=0 Restarts=0 TimeLimit=UNLIMITED "
    f"SubmitTime={AT} EligibleTime=Unknown StartTime=Unknown EndTime=Unknown SuspendTime=None "
    "NodeList= ExcNodeList=(null) WorkDir=/tmp/sub"
)


def test_squeue_lists_every_task_and_passes_over_other_lines() -> None:
    jobs = records.read_squeue(SQUEUE)
    assert [(job.address, job.job_id, job.array_id, job.live) for job in jobs] == [
        ("2_1", 2, 2, True),
        ("4_0", 4, 4, True),
        ("1", 1, 1, True),
        ("2_0", 3, 2, False),
        ("9+0", 9, 9, True),
        ("9+1", 10, 9, True),
    ]
    held = jobs[1]
    running = jobs[2]
    assert (held.priority, held.reason, held.start_time) == (0, "JobHeldUser", None)
    assert (running.node_list, running.work_dir, running.submit_time) == (
        "n[1-2]",
        "/tmp/a|b",
        EPOCH,
    )


@pytest.mark.parametrize(("by", "who"), [(" by 1000", 1000), (" by root", "root"), ("", None)])
def test_who_cancelled_is_a_number_or_a_name(by: str, who: object) -> None:
    (life,) = records.read_sacct(f"3|3|CANCELLED{by}|0:15|||Unknown|n1|/a/code|c\n")
    assert (life.state, life.cancelled_by) == ("CANCELLED", who)


@pytest.mark.parametrize(
    ("dependencies", "address", "named"),
    [
        ("afterok:26(unfulfilled)\n\n", "26", True),
        ("afterany:9:26,afterok:7", "26", True),
        ("afterok:26_3(unfulfilled)", "26_3", True),
        ("afterok:26_*(unfulfilled)", "26_3", True),
        ("afterok:26(unfulfilled)", "26_3", True),
        ("afterok:26_4", "26_3", False),
        ("afterok:126(unfulfilled)", "26", False),
        ("(null)\nsingleton", "26", False),
    ],
)
def test_a_dependency_names_the_jobs_that_are_awaited(
    dependencies: str, address: str, named: bool
) -> None:
    assert records.names_job(dependencies, address) is named


def test_sacct_tells_every_life_of_a_requeued_job_in_order() -> None:
    lives = records.read_sacct(SACCT)
    assert [life.state for life in lives if life.address == "1"] == [
        "PREEMPTED",
        "NODE_FAIL",
        "RUNNING",
    ]
    assert [life.address for life in lives if life.state == "PENDING"] == ["2_1", "2_2", "2_5"]
    cancelled, failed = lives[-2:]
    assert (cancelled.state, cancelled.cancelled_by, cancelled.exit_signal) == (
        "CANCELLED",
        1000,
        15,
    )
    assert (cancelled.job_id, cancelled.name, cancelled.work_dir) == (3, "c", "/a|b/code")
    assert (failed.exit_code, failed.start_time, failed.end_time, failed.node_list) == (
        85,
        None,
        EPOCH,
        "",
    )


def test_scontrol_shows_a_running_job_whatever_its_owner_wrote_into_it() -> None:
    (job,) = records.read_jobs(RUNNING + "\n")
    assert (job.address, job.state, job.running, job.ending) == ("1", "RUNNING", True, True)
    assert (job.preempt_time, job.time_limit_s, job.node_list) == (EPOCH, 86400, "n[1-2]")
    fields = records.fields_of(RUNNING)
    assert fields["Command"] == "/tmp/my runs/job.sbatch"
    assert fields["MCS_label"] == "N/A"


def test_pending_tasks_that_share_a_line_are_jobs_of_their_own() -> None:
    jobs = records.read_jobs(f"\n{WAITING}\n{WAITING.replace('0-2%1', '7')}\n")
    assert [job.address for job in jobs] == ["4_0", "4_1", "4_2", "4_7"]
    assert {(job.state, job.preempt_time, job.time_limit_s) for job in jobs} == {
        ("PENDING", None, None)
    }


def test_no_jobs_are_no_records() -> None:
    assert (
        records.read_squeue("")
        == records.read_sacct("")
        == records.read_jobs("No jobs in the system\n")
        == []
    )


def test_configuration_by_name() -> None:
    text = (
        "Configuration data as of 2026-11-23T13:40:30\nMaxArraySize            = "
        "1001\nAuthInfo  = socket=/a=b\n\n"
    )
    assert records.read_config(text) == {"MaxArraySize": "1001", "AuthInfo": "socket=/a=b"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2,7%2]", ["12_0", "12_1", "12_2", "12_7"]),
        ("12_[0-9:4]", ["12_0", "12_4", "12_8"]),
        ("12_[3]", ["12_3"]),
        ("12_[0-1,...]", ["12_0", "12_1"]),
    ],
)
def test_addresses(text: str, found: list[str]) -> None:
    assert records.addresses(text) == found


def test_the_largest_array_that_slurm_can_have_is_listed_whole() -> None:
    listed = records.addresses("12_[0-4000000]")
    assert len(listed) == 4_000_001
    assert listed[-1] == "12_4000000"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("02:03:04", 7384),
        ("03:04", 184),
        ("90", 5400),
        ("2-00", 172800),
        ("1-12:30", 131400),
        ("UNLIMITED", None),
        ("Partition_Limit", None),
        ("", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert records.duration(text) == seconds


@given(st.text(max_size=200))
def test_nothing_that_a_command_prints_breaks_the_reader(text: str) -> None:
    for read in (
        records.read_squeue,
        records.read_sacct,
        records.read_jobs,
        records.read_config,
        records.addresses,
    ):
        read(text)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["Unknown", "None", "N/A", "", "(null)", "2026-11-23", "now"])
def test_times_that_are_not_known(text: str) -> None:
    assert records.seconds(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-10-25T02:30:00+0200", 1792888200),
        ("2026-10-25T02:30:00+0100", 1792891800),
        ("2026-10-25T00:30:00+0000", 1792888200),
    ],
)
def test_the_hour_that_autumn_has_twice_is_two_hours(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for before in ("2026-12-01T00:00:00", "2026-07-01T00:00:00"):  # what was read last decided
            records.seconds(before)
            assert records.seconds(text) == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("answer", "job_id", "notes"),
    [
        ("Submitted batch job 4711\n", 4711, ()),
        ("4711\n", 4711, ()),
        ("4711;west\n", 4711, ()),
        ("Submitted batch job 4711 on cluster west\n", 4711, ()),
        ("job 99 is yours too\n\nSubmitted batch job 30\n", 30, ("job 99 is yours too",)),
        ("Submitted batch job 30\n3 jobs are ahead\n7\n", 30, ("3 jobs are ahead", "7")),
        ("12\nwelcome\n4711\n", 4711, ("12", "welcome")),
        ("[site] Submitted batch job 30 (short)\n5\n", 30, ("5",)),
        ("\x1b[32mSubmitted batch job 30\x1b[0m\r\n", 30, ()),
        ("Submitted batch job 1\nSubmitted batch job 2\n", 2, ("Submitted batch job 1",)),
    ],
)
def test_the_job_is_the_one_of_sbatchs_own_line_whatever_is_said_around_it(
    answer: str, job_id: int, notes: tuple[str, ...]
) -> None:
    assert records.read_submission(answer) == records.Submission(job_id, notes)


@pytest.mark.parametrize("answer", ["", "welcome\n", "job 99 waits\n", "12 jobs\n"])
def test_an_answer_without_a_job_names_none(answer: str) -> None:
    assert records.read_submission(answer) is None
