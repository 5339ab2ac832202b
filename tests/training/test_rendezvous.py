"""Ranks of different runs that found the same port do not become one group; those of one wait for
each other.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training.rendezvous import listen, open_store
from tests.listening import listening_on

RANK = """
import datetime, os, sys, time, torch
# 600 s with NCCL
torch.distributed.distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=2)
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training.device import broadcast, process_group
from tests.listening import listening_on
place = RankEnvironment(int(sys.argv[1]), 0, 2, 1, "127.0.0.1", int(sys.argv[2]))
with process_group(place, torch.device("cpu")):
    time.sleep(float(os.environ.get("BUSY_S", "0")) * (place.rank == 0))
    print("met", broadcast(sys.argv[3]), *listening_on(place.master_port), flush=True)
    broadcast(None)  # rank 0 listens until the other has looked
"""


def rank(number: int, port: int, run: str, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HPC_LLM_RENDEZVOUS": run, "GLOO_SOCKET_IFNAME": "lo", **more}
    command = [sys.executable, "-c", RANK, str(number), str(port), run]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def place(address: str, *, nodes: int = 1, port: int = 0) -> RankEnvironment:
    return RankEnvironment(0, 0, 2 * nodes, 2, address, port)


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """What a name server says of every name."""

    def answer(_: str, port: int, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_rank_0_listens_where_the_ranks_are_told_alone(address: str, nodes: int) -> None:
    store, at = open_store(place(address, nodes=nodes), "/runs/a/1")
    assert store is not None
    assert listening_on(at.master_port) == [address]


def test_of_a_name_with_several_addresses_the_first_of_this_machine_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolves_to(monkeypatch, "192.0.2.1", "127.0.0.3", "127.0.0.1")
    with listen(place("n1")) as server:
        assert server.getsockname()[0] == "127.0.0.3"
    assert capsys.readouterr().err == ""


def test_of_a_name_with_several_addresses_other_nodes_may_take_another_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolves_to(monkeypatch, "192.0.2.1", "192.0.2.2")
    with listen(place("n1", nodes=2)) as server:
        assert listening_on(server.getsockname()[1]) in (["::"], ["0.0.0.0"])
    assert "rank 0 listens on all interfaces" in capsys.readouterr().err


@pytest.mark.parametrize(("address", "nodes"), [("192.0.2.1", 1), ("127.0.1.1", 2)])
def test_an_address_that_is_not_here_or_that_others_do_not_reach_opens_all_and_says_so(
    address: str, nodes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolves_to(monkeypatch, address)
    with listen(place("n1", nodes=nodes)) as server:
        assert listening_on(server.getsockname()[1]) in (["::"], ["0.0.0.0"])
    assert "MASTER_ADDR=n1: no single address of this machine" in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error_and_no_reason_to_open_all() -> None:
    with listen(place("127.0.0.1")) as server, pytest.raises(OSError, match="in use"):
        listen(place("127.0.0.1", port=server.getsockname()[1]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_rank_of_another_run_is_not_let_in() -> None:
    port = free_port()
    stranger = rank(1, port, "/runs/b/1")
    first = rank(0, port, "/runs/a/1")
    second = rank(1, port, "/runs/a/1")
    try:
        assert [one.communicate(timeout=60)[0].strip() for one in (first, second)] == [
            "met /runs/a/1 127.0.0.1"
        ] * 2
    finally:
        for one in (stranger, first, second):
            one.kill()
    assert "met" not in stranger.communicate()[0]


@pytest.mark.slow
def test_ranks_wait_for_the_one_that_reshapes_a_checkpoint() -> None:
    """Not for as long as torch would, but until their supervisor takes it for a hang."""
    port = free_port()
    both = [rank(number, port, "/runs/a/1", BUSY_S="5") for number in (0, 1)]
    try:
        assert [one.communicate(timeout=60)[0].strip() for one in both] == [
            "met /runs/a/1 127.0.0.1"
        ] * 2
    finally:
        for one in both:
            one.kill()
