"""What kind of site the cluster plays, and where its files lie."""

from __future__ import annotations

import json
import random
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path


class ClusterError(Exception):
    """What the user is told, in one line.

    code: the exit status, 2 if the user's input is wrong, 1 if something went wrong.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Site:
    """One cluster: what `up` was asked for, and the ports it found."""

    prefix: str
    hostname: str
    name_is_loopback: bool = False
    num_nodes: int = 2
    gpus_per_node: int = 2
    preempt_mode: str = "REQUEUE"
    preempt_type: str = "partition"
    grace_time_s: int = 5
    accounting: bool = True
    requeue: bool = True
    max_array_size: int = 1001
    max_submit: int | None = None
    slurmd_timeout_s: int = 15
    ports: tuple[int, ...] = ()

    @property
    def nodes(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.num_nodes + 1)]

    @property
    def cpus_per_node(self) -> int:
        """What a node claims, whatever the machine has: room for two jobs of one CPU a GPU."""
        return max(4, 2 * self.gpus_per_node)

    @property
    def slurm_conf(self) -> Path:
        return self.path("etc/slurm.conf")

    @property
    def ctld_port(self) -> int:
        return self.ports[0]

    @property
    def dbd_port(self) -> int:
        return self.ports[1]

    @property
    def mariadb_port(self) -> int:
        return self.ports[2]

    def node_port(self, node: str) -> int:
        return self.ports[3 + self.nodes.index(node)]

    def path(self, relative: str) -> Path:
        return Path(self.prefix) / relative

    def save(self) -> None:
        """Written last to its name, so that a reader never sees half of it."""
        draft = site_file(Path(self.prefix)).with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        draft.replace(site_file(Path(self.prefix)))


def site_file(prefix: Path) -> Path:
    """The file that makes a folder a cluster's; `down` removes no folder without it."""
    return prefix / "local_slurm.json"


def load_site(prefix: Path) -> Site | None:
    """The cluster of a folder, or None where there is none.

    Root stops processes and removes a folder on this file's word, and /tmp is everyone's: so it
    must be root's.
    """
    try:
        owner = site_file(prefix).lstat().st_uid
        fields = json.loads(site_file(prefix).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise ClusterError(f"{prefix} is not readable for this user", 2) from None
    except ValueError:
        raise ClusterError(
            f"{site_file(prefix)} is not a cluster's file; remove the folder by hand", 2
        ) from None
    if owner != 0:
        raise ClusterError(
            f"{site_file(prefix)} belongs to uid {owner}, not to root; name another --prefix", 2
        )
    return Site(**{**fields, "prefix": str(prefix), "ports": tuple(fields["ports"])})


def free_ports(count: int) -> tuple[int, ...]:
    """`count` distinct ports that nobody listens on, below the ephemeral range.

    From the ephemeral range (`bind` to port 0) a port could be taken as some connection's own end
    while a killed slurmd is away. Drawn at random, so that two clusters starting at once rarely try
    the same.
    """
    ephemeral_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(10_000, ephemeral_from)
    if (
        len(candidates) < 2 * count
    ):  # a machine that gives away low ports too: then any port above them may do
        candidates = range(10_000, 65_536)
    found: list[int] = []
    with ExitStack() as held:  # held until all are found, so that none is found twice
        for port in random.sample(candidates, len(candidates)):
            if len(found) == count:
                return tuple(found)
            probe = held.enter_context(socket.socket())
            try:
                # The wildcard address, because slurmd and slurmdbd bind to it: free on loopback
                # alone is not enough.
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
    raise ClusterError(
        f"no {count} free ports between {candidates.start} and {candidates.stop - 1}"
    )
