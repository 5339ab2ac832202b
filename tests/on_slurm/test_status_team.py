"""`status --team` on a real Slurm: GPUs of jobs that run and wait, what partitions hold, shares."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm


def test_the_gpus_that_users_have_and_wait_for(slurm: SlurmCluster) -> None:
    slurm.wait_state(slurm.sbatch("--nodes=2", "--gpus-per-node=1", script="sleep 100"), "RUNNING")
    slurm.sbatch("--array=0-2", "--nodes=2", "--gpus-per-node=2", script="sleep 100")
    status = (sys.executable, "-m", "hpc_llm.status", "--team")
    found = json.loads(slurm.run(*status, "--json").stdout)
    (user,) = found["users"]
    assert (user["name"], user["running"], user["running_jobs"]) == ("root", 2, 1)
    assert (user["queued"], user["queued_jobs"]) == (12, 3)
    assert [(one["name"], one["total"], one["used"]) for one in found["partitions"]] == [
        ("train", 4, 2),
        ("urgent", 4, 2),
    ]
    shown = slurm.run(*status).stdout
    assert "2 GPUs running, 12 queued" in shown
    assert slurm.run(*status, "no-such-account").stdout.startswith(
        "no-such-account: 0 GPUs running"
    )
