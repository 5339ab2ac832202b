"""Which addresses of this machine somebody listens on, by Linux's own table."""

from __future__ import annotations

import socket
from pathlib import Path

_LISTENS = "0A"


def listening_on(port: int) -> list[str]:
    """The addresses on which this TCP port is open."""
    addresses = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == _LISTENS and int(number, 16) == port:
                addresses.append(socket.inet_ntop(family, _network_order(address)))
    return addresses


def _network_order(text: str) -> bytes:
    """The kernel prints words of four bytes in the machine's own order."""
    raw = bytes.fromhex(text)
    words = [raw[start : start + 4][::-1] for start in range(0, len(raw), 4)]
    return b"".join(words)
