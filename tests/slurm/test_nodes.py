"""What sinfo says of nodes and partitions, and GPUs in Slurm's spellings."""

from __future__ import annotations

import pytest

from hpc_llm.slurm import client, nodes
from hpc_llm.slurm.columns import num_gpus
from hpc_llm.slurm.nodes import PARTITION_COLUMNS, Node, read_partitions
from tests.slurm.columns import columns


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("cpu=64,mem=500G,node=2,billing=64,gres/gpu=16,gres/gpu:a100=16", 16),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:3(IDX:0-2),gpu:h100:1(IDX:3)", 4),
        ("gpu:2", 2),
        ("cpu=1,mem=1000M,node=1", 0),
        ("(null)", 0),
        ("N/A", 0),
    ],
)
def test_gpus_are_counted_in_every_spelling(text: str, count: int) -> None:
    assert num_gpus(text) == count


def test_gpus_of_a_node_that_is_down_are_not_free() -> None:
    nodes = columns(
        PARTITION_COLUMNS,
        ("gpu*", "n1", "gpu:a100:4(S:0-1)", "gpu:a100:1(IDX:0)", "mixed"),
        ("gpu*", "n2", "gpu:a100:4(S:0-1)", "gpu:a100:0(IDX:N/A)", "drained"),
        ("gpu*", "n3", "gpu:a100:4", "gpu:a100:0", "idle*"),
        ("cpu", "n4", "(null)", "(null)", "idle"),
    )
    gpu, cpu = read_partitions(nodes)
    assert (gpu.name, gpu.total, gpu.used, gpu.down, gpu.free) == ("gpu", 12, 1, 8, 3)
    assert (cpu.name, cpu.total, cpu.free) == ("cpu", 0, 0)


@pytest.mark.parametrize(
    ("state", "up"),
    [
        ("idle", True),
        ("mixed", True),
        ("allocated", True),
        ("idle~", True),  # powered down, and started when it is needed
        ("reserved", True),
        ("idle*", False),  # it does not answer
        ("down", False),
        ("drained", False),
        ("MAINT", False),
    ],
)
def test_which_nodes_can_run_jobs(state: str, up: bool) -> None:
    assert Node("n1", "train", True, state).up is up


def test_a_node_is_listed_for_each_of_its_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "call", lambda *_: "n1|train*|idle\nn1|urgent|idle\nsite news\n")
    assert nodes.ask() == [Node("n1", "train", True, "idle"), Node("n1", "urgent", False, "idle")]
