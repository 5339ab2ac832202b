"""A rank that stops answering: found from outside, its stacks kept, and the step started again in
its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.local_runs import run

pytestmark = pytest.mark.slow

WORDS = (
    "cluster.gpus_per_node=2",
    "recovery.hang_floor_s=10",
    "recovery.start_timeout_s=60",
    "train.duration=40steps",
)


def test_a_rank_that_is_stopped_is_found_and_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    plain = run(tmp_path, "plain", *WORDS)
    hurt = run(
        tmp_path, "hung", *WORDS, faults=[{"attempt": 1, "rank": 1, "kind": "stop", "step": 25}]
    )
    assert hurt.status == 0, hurt.output
    (hang,) = hurt.named("hang")
    assert hang["phase"] == "training"
    assert 10 <= hang["silent_s"] < 20
    assert [end["cause"] for end in hurt.named("ended")] == ["hang", "completed"]
    for rank in (0, 1):
        assert "Fatal Python error: Aborted" in hurt.layout.rank_log(1, rank).read_text()
    stacks = hurt.layout.stacks(
        1
    ).read_text()  # of py-spy, which sees a rank that is stopped from outside
    assert stacks.count("Python v3") == 2 and "hpc_llm.train" in stacks
    assert "most recent call first" in hurt.layout.rank_log(1, 1).read_text()
    assert hurt.named("resumed")[0]["step"] == 24
    assert hurt.losses == plain.losses
    assert sorted(hurt.losses) == list(range(1, 41))
