"""Where the ranks meet, also while nobody answers who knows it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs import attempts
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.slurm import client
from hpc_llm.supervise import slurm_place, successor
from hpc_llm.supervise.slurm_place import SlurmPlace
from tests.configs import make_config

SCONTROL = """#!/bin/sh
case "$*" in
  *hostnames*) printf 'n1\\nn2\\nn3\\n';;
  *) [ -e "$AWAY" ] && { echo "Unable to contact slurm controller (connect failure)" >&2; exit 1; }
     for host; do :; done
     echo "NodeName=$host NodeAddr=10.0.0.${host#n}";;
esac
"""


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes slurmctld away while it is there; node names do not resolve."""

    def unknown(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("AWAY", str(tmp_path / "away"))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(slurm_place, "AGAIN_S", 0.0)
    return tmp_path / "away"


def allocation() -> SlurmPlace:
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}
    return SlurmPlace(environment, make_config("cluster=local-slurm").cluster)


def test_where_the_ranks_meet_is_known_when_slurm_goes_away(away: Path) -> None:
    here = allocation()
    away.touch()
    assert here.master_address() == "10.0.0.1"
    here.leave_out(["n1"])
    assert here.hosts == ["n3", "n2"]
    assert here.master_address() == "10.0.0.3", "the spare one's too"


def test_a_place_that_could_not_ask_asks_again_and_at_last_takes_the_name(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away.touch()
    here = allocation()
    monkeypatch.setattr(slurm_place, "ADDRESS_PATIENCE_S", 0.3)
    assert here.master_address() == "n1"
    away.unlink()
    assert here.master_address() == "10.0.0.1"


def test_where_a_site_hides_its_nodes_the_first_node_takes_its_own_address_at_once(
    monkeypatch: pytest.MonkeyPatch, away: Path
) -> None:
    def refused(host: str) -> str:
        raise client.SlurmRefused("scontrol: slurm_load_node error: Access/permission denied")

    monkeypatch.setattr(client, "node_address", refused)
    monkeypatch.setattr(client, "config", lambda: {"SlurmctldHost[0]": "ctl(127.0.0.1)"})
    monkeypatch.setattr(slurm_place, "ADDRESS_PATIENCE_S", -1.0)  # nothing is waited for
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    here = allocation()
    assert here.master_address() == "127.0.0.1"
    away.touch()
    here.leave_out(["n1"])
    assert here.hosts[0] == "n3"
    assert here.master_address() == "n3", "of another node the name is all that is known"


def test_behind_the_fence_slurm_is_told_nothing_of_the_job(
    tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be that of a healthy attempt: Slurm requeues a job under its own."""
    here = allocation()
    run = RunLayout(tmp_path / "run")
    fence = Fence(run, attempts.claim(run))
    (tmp_path / "scancel").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "scancel").chmod(0o755)
    assert here.signal_tasks(fence, "KILL")
    attempts.claim(run)
    monkeypatch.setattr(client, "show", lambda address: pytest.fail("asked"))
    with pytest.raises(attempts.Fenced):
        here.signal_tasks(fence, "KILL")
    assert here.requeue(fence) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ValueError("half a line")]
)
def test_a_run_that_cannot_be_read_is_handed_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Path, error: Exception
) -> None:
    """Then the job is queued again itself, as without a successor."""

    def unread(layout: RunLayout) -> None:
        raise error

    monkeypatch.setattr(successor.run_record, "read_record", unread)
    run = RunLayout(tmp_path / "run")
    assert allocation().hand_to_successor(run, Ledger(run.ledger, "supervisor-1")) is False
    allocation().finished(run)
