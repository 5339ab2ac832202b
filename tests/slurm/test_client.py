"""What Slurm's commands are asked, and how their failures are told apart.

A real Slurm is asked in tests/on_slurm.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from hpc_llm.slurm import client, command, records
from hpc_llm.slurm.client import SlurmRefused, SlurmUnavailable


class Commands:
    """Stand-ins for commands on PATH.

    They note their arguments and environment, say what they are given, and end with a status.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(
        self, name: str, *, out: str = "", err: str = "", status: int = 0, sleep: int = 0
    ) -> None:
        (self.folder / f"{name}.out").write_text(out)
        (self.folder / f"{name}.err").write_text(err)
        here = shlex.quote(f"{self.folder}/{name}")
        script = (
            f"#!/bin/bash\nprintf '%s\\n' \"$@\" >{here}.words\nenv >{here}.env\nsleep {sleep}\n"
        )
        (self.folder / name).write_text(
            f"{script}cat {here}.out\ncat {here}.err >&2\nexit {status}\n"
        )
        (self.folder / name).chmod(0o755)

    def words(self, name: str) -> list[str]:
        return (self.folder / f"{name}.words").read_text().splitlines()

    def environment(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Commands(tmp_path)


UNKNOWN = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "scontrol: error: slurm_receive_msg: Socket timed out on send/recv operation",
    "sacct: error: Sending PersistInit msg: Connection refused",
    "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    (
        'squeue: error: Munge encode failed: Failed to access "/run/munge.socket": No such file or '
        "directory"
    ),
    "slurm_load_jobs error: Slurm backup controller in standby mode",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    "slurm_load_jobs error: Invalid authentication credential",
    "squeue: fatal: Unable to process configuration file",
]
REFUSED = [
    "sbatch: error: Batch job submission failed: Invalid partition name specified",
    "slurm_load_jobs error: Invalid job id specified",
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)",
    "Access/permission denied for job 12",
    (
        "sbatch: error: Batch job submission failed: Invalid account or account/partition "
        "combination specified"
    ),
    "sbatch: error: AssocMaxSubmitJobLimit",
]


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_question_that_failed_is_unknown_and_never_no(commands: Commands, words: str) -> None:
    commands.say("squeue", err=words, status=1)
    with pytest.raises(SlurmUnavailable) as raised:
        client.queued()
    assert words.rpartition("error: ")[2].split(";")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        "Slurm accounting storage is disabled",
        "slurm_load_jobs error: Access/permission denied",
        "sacct: error: Invalid user id: nobody-here",
        "sacct: unrecognized option '--frobnicate'",
    ],
)
def test_a_question_that_slurm_will_not_answer_is_no_outage(commands: Commands, words: str) -> None:
    commands.say("sacct", err=words, status=1)
    with pytest.raises(SlurmRefused):
        client.lives(since_s=60)


@pytest.mark.parametrize("words", REFUSED)
def test_an_answer_is_told_from_silence(commands: Commands, words: str) -> None:
    commands.say("scontrol", err=words + "\n", status=1)
    with pytest.raises(SlurmRefused):
        client.update("12", Comment="x")


def test_a_command_that_is_not_there_or_hangs_is_unknown(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TIMEOUT_S", 0.2)
    with monkeypatch.context() as empty:
        empty.setenv("PATH", "/nowhere")
        with pytest.raises(SlurmUnavailable, match="sacct is not on PATH"):
            client.lives(since_s=60)
    commands.say("squeue", sleep=5)
    with pytest.raises(SlurmUnavailable, match="squeue gave no answer within"):
        client.queued()


def test_one_call_asks_for_all_jobs_by_fields(commands: Commands) -> None:
    commands.say("squeue")
    commands.say("sacct")
    client.queued()
    assert {"--array", f"--user={os.getuid()}", "--states=all"} <= set(commands.words("squeue"))
    client.lives([12, 15], since_s=3600.2)
    assert {"--jobs=12,15", "--duplicates", "--allocations", "--starttime=now-3600seconds"} <= set(
        commands.words("sacct")
    )
    client.lives(since_s=60)
    assert f"--uid={os.getuid()}" in commands.words("sacct")


def test_an_enclosing_job_and_a_shells_defaults_say_nothing_to_slurm(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "west", "HOME": "/home/me"}
    foreign = (
        "SLURM_JOB_ID",
        "SQUEUE_FORMAT",
        "SQUEUE_STATES",
        "SBATCH_PARTITION",
        "SACCT_FORMAT",
        "SLURM_NTASKS",
    )
    for name, value in {
        **ours,
        **dict.fromkeys(foreign, "x"),
        "SLURM_TIME_FORMAT": "relative",
    }.items():
        monkeypatch.setenv(name, value)
    commands.say("squeue")
    client.queued()
    seen = commands.environment("squeue")
    assert ours.items() <= seen.items()
    assert not set(foreign) & set(seen)
    assert seen["SLURM_TIME_FORMAT"] == records.TIME_FORMAT


def test_sbatch_passes_nothing_of_ours_on_to_the_job(commands: Commands) -> None:
    commands.say("sbatch", out="4711\n")
    client.submit(Path("/runs/a/job.sbatch"))
    assert not {"SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"} & set(commands.environment("sbatch"))


def test_a_requeue_of_what_waits_already_is_no_error(commands: Commands) -> None:
    commands.say("scontrol", err="Job is pending execution for job 12_1\n", status=1)
    client.requeue("12_1")
    assert commands.words("scontrol") == ["requeue", "12_1"]


def test_a_job_that_slurm_has_forgotten_is_no_record(commands: Commands) -> None:
    commands.say("scontrol", err="slurm_load_jobs error: Invalid job id specified\n", status=1)
    assert client.show("12") == []


def test_what_a_site_hides_is_refused_and_not_asked_for_again(commands: Commands) -> None:
    commands.say("scontrol", err="slurm_load_node error: Access/permission denied\n", status=1)
    with pytest.raises(client.SlurmRefused):
        client.node_address("n1")


def test_submission_reads_the_id_and_passes_options_on(commands: Commands) -> None:
    commands.say("sbatch", out="a word of the site\n4711;west\n")
    assert client.submit(Path("/runs/a b/job.sbatch"), "--array=3") == 4711
    assert commands.words("sbatch") == ["--parsable", "--array=3", "/runs/a b/job.sbatch"]
    commands.say("sbatch", out="")
    with pytest.raises(SlurmUnavailable, match="said no job id"):
        client.submit(Path("/runs/a/job.sbatch"))


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "12_0"),
    ],
)
def test_a_task_of_an_array_is_called_by_its_index(
    environment: dict[str, str], address: str
) -> None:
    assert client.own_address(environment) == address


def shown(**changes: str) -> str:
    fields = {
        "JobId": "12",
        "JobState": "RUNNING",
        "Restarts": "0",
        "PreemptTime": "None",
        **changes,
    }
    return " ".join(f"{key}={value}" for key, value in fields.items())


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, "requeue"),
        ({"JobState": "COMPLETING"}, None),  # scancel: the user's word is final
        ({"JobState": "CANCELLED"}, None),
        ({"PreemptTime": "2026-11-23T13:40:28"}, None),  # the grace runs: Slurm requeues it itself
    ],
)
def test_a_job_requeues_itself_only_where_nobody_ends_it(
    commands: Commands, changes: dict[str, str], how: str | None
) -> None:
    commands.say("scontrol", out=shown(**changes))
    assert client.requeue_own("12") == how


def test_a_job_to_which_a_signal_is_on_its_way_requeues_itself_after_that(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where a hang was aborted a moment before: the state says nothing of the job's end."""
    states = ["SIGNALING", "SIGNALING", "RUNNING"]
    monkeypatch.setattr(
        client, "show", lambda address: records.read_jobs(shown(JobState=states.pop(0)))
    )
    commands.say("scontrol")
    assert client.requeue_own("12", again_s=0.01) == "requeue"
    assert states == []
    states += ["SIGNALING", "COMPLETING"]
    assert client.requeue_own("12", again_s=0.01) is None
    assert states == []


def test_a_job_that_became_anothers_while_slurmctld_was_away_is_not_requeued(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [True, False]

    def away(address: str) -> list[records.Job]:
        raise SlurmUnavailable("away")

    monkeypatch.setattr(client, "show", away)
    assert client.requeue_own("12", ours=lambda: ours.pop(0), again_s=0.01) is None
    assert ours == []


def test_a_requeue_waits_for_slurmctld_to_come_back(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def show(address: str) -> list[records.Job]:
        tries.append(address)
        if len(tries) < 3:
            raise SlurmUnavailable("away")
        return records.read_jobs(shown())

    monkeypatch.setattr(client, "show", show)
    commands.say("scontrol")
    assert client.requeue_own("12", again_s=0.01) == "requeue"
    assert tries == ["12"] * 3
    tries.clear()
    assert client.requeue_own("12", patience_s=0) is None
