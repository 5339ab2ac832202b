"""What the client reads from a real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hpc_llm.slurm import client

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def asked(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """A cluster that this process asks."""
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    return slurm


def test_a_heterogeneous_job_is_one_like_others(asked: SlurmCluster) -> None:
    job = asked.sbatch("--nodes=1", ":", "--nodes=1", "--wrap=sleep 60")
    asked.wait_state(job, "RUNNING")
    found = {one.address: one.array_id for one in client.queued() if one.live}
    assert found == {f"{job}+0": int(job), f"{job}+1": int(job)}
