"""What the client reads from a real Slurm, and what it leaves in the environment of a job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_llm.slurm import client, records
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def asked(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """A cluster that this process asks."""
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    return slurm


def test_times_are_told_with_their_offset(
    asked: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    job = asked.sbatch(script="sleep 1")
    asked.wait_state(job, "COMPLETED")
    assert "+0545|" in client.call(
        "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%S|"
    )
    (queued,) = [one for one in client.queued() if one.address == job]
    shown = records.fields_of(client.call("scontrol", "show", "job", "--oneliner", job))
    until(
        lambda: any(one.end_time for one in client.lives([int(job)], since_s=600)),
        30,
        "sacct's word",
    )
    (life,) = client.lives([int(job)], since_s=600)
    shown_start = records.seconds(shown["StartTime"])
    for start in (queued.start_time, shown_start, life.start_time):
        assert start is not None and abs(time.time() - start) < 60
    assert life.end_time == records.seconds(shown["EndTime"])


def test_a_heterogeneous_job_is_one_like_others(asked: SlurmCluster) -> None:
    job = asked.sbatch("--nodes=1", ":", "--nodes=1", "--wrap=sleep 60")
    asked.wait_state(job, "RUNNING")
    found = {one.address: one.array_id for one in client.queued() if one.live}
    assert found == {f"{job}+0": int(job), f"{job}+1": int(job)}


def test_a_job_has_nothing_of_ours_in_its_environment(asked: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    out = asked.work / "environment.out"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={out}\nenv; echo whole\n")
    client.submit(script)
    asked.wait_text(out, "whole")
    said = out.read_text()
    assert "SLURM_TIME_FORMAT" not in said
    assert "SLURM_BITSTR_LEN" not in said
