"""Ranks of different runs that found the same port do not become one group; those of one wait for
each other.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RANK = """
import datetime, os, sys, time, torch
# 600 s with NCCL
torch.distributed.distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=2)
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training.device import broadcast, process_group
place = RankEnvironment(int(sys.argv[1]), 0, 2, 1, "127.0.0.1", int(sys.argv[2]))
with process_group(place, torch.device("cpu")):
    time.sleep(float(os.environ.get("BUSY_S", "0")) * (place.rank == 0))
    print("met", broadcast(sys.argv[3]), flush=True)
"""


def rank(number: int, port: int, run: str, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HPC_LLM_RENDEZVOUS": run, "GLOO_SOCKET_IFNAME": "lo", **more}
    command = [sys.executable, "-c", RANK, str(number), str(port), run]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_rank_of_another_run_is_not_let_in() -> None:
    port = free_port()
    stranger = rank(1, port, "/runs/b/1")
    first = rank(0, port, "/runs/a/1")
    second = rank(1, port, "/runs/a/1")
    try:
        assert [one.communicate(timeout=60)[0].strip() for one in (first, second)] == [
            "met /runs/a/1"
        ] * 2
    finally:
        for one in (stranger, first, second):
            one.kill()
    assert "met" not in stranger.communicate()[0]


def test_ranks_wait_for_the_one_that_reshapes_a_checkpoint() -> None:
    """Not for as long as torch would, but until their supervisor takes it for a hang."""
    port = free_port()
    both = [rank(number, port, "/runs/a/1", BUSY_S="5") for number in (0, 1)]
    try:
        assert [one.communicate(timeout=60)[0].strip() for one in both] == ["met /runs/a/1"] * 2
    finally:
        for one in both:
            one.kill()
