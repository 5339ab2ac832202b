"""What squeue, sinfo and sshare say of a team."""

from __future__ import annotations

import pytest

from hpc_llm.slurm.columns import num_gpus
from hpc_llm.slurm.nodes import PARTITION_COLUMNS, read_partitions
from hpc_llm.slurm.team import JOB_COLUMNS, User, read_shares, read_users


def columns(widths: dict[str, int], *rows: tuple[str, ...]) -> str:
    return "\n".join(
        "".join(c.ljust(w) for c, w in zip(row, widths.values(), strict=True)) for row in rows
    )


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


def test_users_with_most_gpus_come_first_and_those_with_a_share_alone_last() -> None:
    jobs = columns(
        JOB_COLUMNS,
        ("ann", "nlp", "RUNNING", "node=1,gres/gpu=8"),
        ("bob", "nlp", "PENDING", "node=4,gres/gpu=32"),
        ("ann", "nlp", "PENDING", "node=1,gres/gpu=8"),
        ("a-name-with-many-letters-of-a-directory-service", "nlp", "RUNNING", "node=2,gres/gpu=16"),
    )
    shares = [User("ann", "nlp", fair_share=0.4), User("cy", "nlp", fair_share=0.9)]
    users = read_users(jobs, shares)
    assert [user.name[:3] for user in users] == ["a-n", "ann", "bob", "cy"]
    ann = users[1]
    assert (ann.running, ann.running_jobs, ann.queued, ann.queued_jobs, ann.fair_share) == (
        8,
        1,
        8,
        1,
        0.4,
    )


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


def test_shares_are_those_of_people() -> None:
    text = (
        "root||1.000000|1.000000|\n nlp||0.500000|0.250000|\n  nlp|ann|0.250000|0.500000|0.125000\n"
    )
    (ann,) = read_shares(text)
    assert ann == User("ann", "nlp", fair_share=0.125, share_used=2.0)
