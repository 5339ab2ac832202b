"""Nodes as sinfo knows them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_llm.slurm import client

_UP = ("idle", "mixed", "allocated", "completing", "reserved", "planned")


@dataclass(frozen=True)
class Node:
    """A node in one of its partitions."""

    name: str
    partition: str
    default: bool  # whether it is in the partition that jobs go to which name none
    state: str

    @property
    def up(self) -> bool:
        return self.state.rstrip("*~#!%$@^-+").lower().startswith(_UP) and not self.state.endswith(
            "*"
        )


def ask() -> list[Node]:
    """Every node once for each of its partitions. SlurmUnavailable, SlurmRefused."""
    nodes = []
    for line in client.call("sinfo", "--noheader", "--Node", "--format=%N|%P|%T").splitlines():
        cells = line.split("|")
        if len(cells) == 3:
            name, partition, state = cells
            nodes.append(Node(name, partition.rstrip("*"), partition.endswith("*"), state))
    return nodes
