"""Where the ranks of an attempt find each other: torch's TCPStore, which rank 0 serves.

The store asks nobody who they are: whoever reaches its port can read and change what the ranks tell
each other. It listens on the address that the ranks are told alone, where torch's own listens on
all interfaces.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from hpc_llm.slurm.environment import RankEnvironment

# Of addresses that a name has, and that this machine cannot listen on.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_PATIENCE_S = 300.0  # torch's own


def open_store(
    place: RankEnvironment, name: str | None, patience_s: float = _PATIENCE_S
) -> tuple[dist.Store | None, RankEnvironment]:
    """The store of this rank's group, and the place with the port that it has.

    name: known to the ranks of one attempt alone. Otherwise two runs that chose the same port at
    the same moment would mix: rank 1 of one joined rank 0 of the other, and together they found no
    valid checkpoint (seen with two clusters on one machine).
    patience_s: how long a rank waits for rank 0, and for what another one is to write.
    None where torchrun's agent has a store for its ranks, which torch finds by itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None, place
    listen_fd = None
    if place.rank == 0:
        server = listen(place)
        place = replace(place, master_port=server.getsockname()[1])
        listen_fd = server.detach()  # the store closes it
    store = dist.TCPStore(
        place.master_addr,
        place.master_port,
        place.world_size,
        place.rank == 0,
        timeout=timedelta(seconds=patience_s),
        wait_for_workers=False,
        master_listen_fd=listen_fd,
    )
    return (store if name is None else dist.PrefixStore(name, store)), place


def listen(place: RankEnvironment) -> socket.socket:
    """Rank 0's socket, on the first of MASTER_ADDR's addresses that this machine has.

    OSError where the port is taken. Only where there is no such address does it listen on all, and
    says so: behind a translation of addresses the ranks reach it all the same. A node's own name is
    often a loopback address on the node itself, or several of its addresses, and ranks of other
    nodes may take one that this one does not: then it listens on all too.
    """
    for family, address in _addresses(place):
        try:
            return socket.create_server(address, family=family)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    print(
        f"MASTER_ADDR={place.master_addr}: no single address of this machine that other nodes "
        f"reach; rank 0 listens on all interfaces, port {place.master_port} (docs/slurm.md)",
        file=sys.stderr,
    )
    if socket.has_dualstack_ipv6():
        everywhere = ("", place.master_port)
        return socket.create_server(everywhere, family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", place.master_port))


def _addresses(place: RankEnvironment) -> list[tuple[int, Any]]:
    """What MASTER_ADDR resolves to here.

    Where nodes are several, that of a name that no other node can read as another one, or none.
    """
    try:
        resolved = socket.getaddrinfo(place.master_addr, place.master_port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    several_nodes = place.world_size > place.local_world_size
    must_be_reached = several_nodes and not _is_numeric(place.master_addr)
    addresses = list[tuple[int, Any]]()
    for family, _, _, _, address in resolved:
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if must_be_reached and (host.is_loopback or host.is_link_local):
            continue
        addresses.append((family, address))
    if must_be_reached and len(addresses) > 1:
        return []
    return addresses


def _is_numeric(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
