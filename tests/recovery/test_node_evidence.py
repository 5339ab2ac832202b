"""Evidence against nodes: what counts, how long, for how many, and how it is cleared."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.recovery import node_evidence
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.node_evidence import WEIGHTS, Evidence, excluded, faults_in, node_scores
from hpc_llm.runs.layout import RootLayout

DAY_H = 24.0
NOW = 1e6
EVIDENCE = st.builds(
    Evidence,
    time=st.floats(NOW - 2 * 86400, NOW),
    node=st.sampled_from(["n1", "n2", "n3", "n4"]),
    kind=st.sampled_from([*WEIGHTS, node_evidence.CLEARED]),
    run=st.sampled_from(["a", "b"]),
    attempt=st.integers(1, 4),
    weight=st.floats(0, 1),
)


def seen(node: str, kind: str, *, ago_h: float = 0.0, run: str = "a", attempt: int = 1) -> Evidence:
    return Evidence(NOW - ago_h * 3600, node, kind, run, attempt, WEIGHTS.get(kind, 0.0))


@pytest.mark.parametrize(
    ("evidence", "bad"),
    [
        ([], set()),
        ([seen("n1", "gpu-fault")], {"n1"}),
        ([seen("n1", "launch-failed")], {"n1"}),
        ([seen("n1", "death")], set()),
        ([seen("n1", "death"), seen("n1", "death", attempt=2)], {"n1"}),
        ([seen("n1", "death"), seen("n1", "death")], set()),  # the same attempt, told twice
        ([seen("n1", "death"), seen("n2", "death", attempt=2)], set()),
        ([seen("n1", "death"), seen("n1", "hang", run="b")], {"n1"}),
        ([seen("n1", "slow", attempt=number) for number in range(3)], {"n1"}),
        ([seen("n1", "gpu-fault", ago_h=25)], set()),
        ([seen("n1", "death", ago_h=25), seen("n1", "death", attempt=2)], set()),
        ([seen("n1", "gpu-fault", ago_h=2), seen("n1", "cleared", ago_h=1)], set()),
        ([seen("n1", "cleared", ago_h=2), seen("n1", "gpu-fault", ago_h=1)], {"n1"}),
    ],
)
def test_a_node_is_left_out_once_the_evidence_is_enough(
    evidence: list[Evidence], bad: set[str]
) -> None:
    assert excluded(node_scores(evidence, NOW, DAY_H, 8)) == bad


def test_an_exclusion_ends_when_what_is_left_of_the_evidence_is_not_enough() -> None:
    evidence = [seen("n1", "death", ago_h=10), seen("n1", "death", ago_h=4, attempt=2)]
    (one,) = node_scores(evidence, NOW, DAY_H, 8)
    assert one.excluded_until == NOW + 14 * 3600
    assert excluded(node_scores(evidence, NOW + 14 * 3600 + 1, DAY_H, 8)) == set()


def test_the_worst_are_left_out_where_there_is_a_cap() -> None:
    evidence = [
        seen("n1", "gpu-fault"),
        seen("n2", "gpu-fault"),
        seen("n2", "death"),
        seen("n3", "gpu-fault"),
    ]
    assert excluded(node_scores(evidence, NOW, DAY_H, 2)) == {"n1", "n2"}
    assert excluded(node_scores(evidence, NOW, DAY_H, 0)) == set()
    assert len(node_scores(evidence, NOW, DAY_H, 0)) == 3  # still shown


@settings(deadline=None)
@given(st.lists(EVIDENCE, max_size=30), st.integers(0, 4))
def test_never_more_than_the_cap_and_all_expire(evidence: list[Evidence], most: int) -> None:
    evidence = sorted(evidence, key=lambda one: one.time)
    found = node_scores(evidence, NOW, DAY_H, most)
    assert len(excluded(found)) <= most
    assert all(
        NOW <= one.excluded_until <= NOW + DAY_H * 3600
        for one in found
        if one.excluded_until is not None
    )
    assert node_scores(evidence, NOW + DAY_H * 3600, DAY_H, most) == []


def test_what_is_reported_is_read_back_whoever_wrote_it(tmp_path: Path) -> None:
    node_evidence.report(tmp_path, "n1", "gpu-fault", run="a", attempt=3, said="Xid 79")
    other = RootLayout(tmp_path).nodes / "elsewhere-1.jsonl"
    other.write_text(
        (RootLayout(tmp_path).nodes / f"{os.uname().nodename}-{os.getpid()}.jsonl").read_text()
        + '{"ti'
    )
    (mine, same) = node_evidence.read(tmp_path)
    assert (mine.node, mine.kind, mine.attempt, mine.weight, mine.said) == (
        "n1",
        "gpu-fault",
        3,
        1.0,
        "Xid 79",
    )
    assert same == mine
    node_evidence.clear(tmp_path, "n1")
    assert node_scores(node_evidence.read(tmp_path), mine.time + 60, DAY_H, 8) == []


@pytest.mark.parametrize(
    ("cause", "log", "kinds"),
    [
        (Cause.KILLED, "", ["death"]),
        (Cause.HANG, "", ["hang"]),
        (Cause.NODE_FAILURE, "", ["node-failure"]),
        (Cause.CRASH, "ValueError: 3", []),
        (Cause.CRASH, "CUDA error: uncorrectable ECC error encountered", ["gpu-fault"]),
        (Cause.DIVERGED, "", []),
    ],
)
def test_the_end_of_an_attempt_bears_witness(
    tmp_path: Path, cause: Cause, log: str, kinds: list[str]
) -> None:
    for _ in "supervisor", "watchdog":
        node_evidence.witness(tmp_path, "n1", cause, log, run="a", attempt=1)
    found = node_scores(node_evidence.read(tmp_path), time.time(), DAY_H, 8)
    assert [seen.kind for one in found for seen in one.evidence] == kinds


@pytest.mark.parametrize(
    "line",
    [
        (
            "[ 1234.5] NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has "
            "fallen off the bus."
        ),
        "NVRM: Xid (PCI:0000:9b:00): 94, pid=7193, Contained: SM",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        (
            "torch.AcceleratorError: CUDA error: uncorrectable NVLink error detected during the "
            "execution"
        ),
    ],
)
def test_what_hardware_says_of_itself_is_found_in_a_log(line: str) -> None:
    assert faults_in(f"step 12 loss 3.4\n{line}\nTraceback") == [line]


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: Xid (PCI:0000:1b:00): 13, Graphics SM Warp Exception",  # the program's own
        "NVRM: Xid (PCI:0000:1b:00): 31, pid=1, MMU Fault",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "NCCL error: unhandled system error",
    ],
)
def test_what_a_program_does_wrong_is_no_evidence(line: str) -> None:
    assert faults_in(line) == []
