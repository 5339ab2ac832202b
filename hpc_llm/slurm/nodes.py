"""Nodes and partitions as sinfo knows them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.slurm import client, columns
from hpc_llm.slurm.columns import num_gpus

_UP = ("idle", "mixed", "allocated", "completing", "reserved", "planned")
_DOWN = ("down", "drain", "fail", "maint", "unknown", "power", "reboot")
_MARKS = "*~#!%$@^-+"  # sinfo puts them after a state; `*`: the node does not answer

PARTITION_COLUMNS = {
    "Partition": 64,
    "NodeList": 256,
    "Gres": 256,
    "GresUsed": 256,
    "StateLong": 32,
}


@dataclass(frozen=True)
class Node:
    """A node in one of its partitions."""

    name: str
    partition: str
    default: bool  # whether it is in the partition that jobs go to which name none
    state: str

    @property
    def up(self) -> bool:
        """Whether jobs can run on it, now or when others have ended."""
        answers = not self.state.endswith("*")
        return answers and self.state.rstrip(_MARKS).lower().startswith(_UP)


@dataclass
class Partition:
    """GPUs of its nodes; a node in two partitions is counted in both."""

    name: str
    total: int = 0
    used: int = 0
    down: int = 0

    @property
    def free(self) -> int:
        return max(0, self.total - self.used - self.down)


def ask() -> list[Node]:
    """Every node once for each of its partitions. SlurmUnavailable, SlurmRefused."""
    nodes = []
    for line in client.call("sinfo", "--noheader", "--Node", "--format=%N|%P|%T").splitlines():
        cells = line.split("|")
        if len(cells) == 3:
            name, partition, state = cells
            nodes.append(Node(name, partition.rstrip("*"), partition.endswith("*"), state))
    return nodes


def partitions() -> list[Partition]:
    """Every partition with its GPUs, the default one first. SlurmUnavailable, SlurmRefused."""
    asked = columns.format_option(PARTITION_COLUMNS)
    return read_partitions(client.call("sinfo", "--noheader", "--Node", asked))


def read_partitions(text: str) -> list[Partition]:
    """What sinfo says in PARTITION_COLUMNS; by name after the default, for its order changes."""
    by_name: dict[str, Partition] = {}
    for name, _, gres, gres_used, state in columns.rows(text, PARTITION_COLUMNS):
        partition = by_name.setdefault(name, Partition(name.rstrip("*")))
        total = num_gpus(gres)
        used = num_gpus(gres_used)
        partition.total += total
        partition.used += used
        if state.lower().startswith(_DOWN) or state.endswith("*"):
            partition.down += total - used
    names = sorted(by_name, key=lambda name: (not name.endswith("*"), name))
    return [by_name[name] for name in names]
