"""What runs have shown reaches the plans of runs alike, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_llm.config.computing import compiles
from hpc_llm.planning.experience import Limit, Speed
from hpc_llm.planning.step_mode import StepMode
from hpc_llm.runs.experience import Remembered, steady_tokens_per_second
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.submission.examine import examine
from tests.configs import make_config

BASE = ("model=mpt-125m", "cluster=a100x8")
MODE = StepMode(zero_stage=1, activation_checkpointing=False)
LIMIT = Limit(4, "first")
SPEED = Speed(1000.0, 8, "first")


def remembered(root: Path, *words: str, attention: str = "sdpa") -> Remembered:
    config = make_config(*BASE, *words)
    return Remembered(RootLayout(root), config, attention, compiles(config))


@pytest.mark.parametrize(
    ("words", "limit", "speed"),
    [
        ((), True, True),
        (
            ("run.seed=3", "optim.lr=1e-5", "train.duration=7steps", "train.global_batch=64"),
            True,
            True,
        ),
        (("cluster.nodes=2",), False, True),  # ZeRO leaves less to each rank; its speed is per rank
        (("cluster.constraint=fast",), True, False),
        (("model=mpt-350m",), False, False),
        (("train.seq_len=1024",), False, False),
        (("cluster.gpu=a100-40gb",), False, False),
        (("optim=muon",), False, False),
        (("train.compile=false",), False, False),
        (("train.compile=true",), True, True),  # as auto has it
    ],
)
def test_what_memory_and_speed_depend_on_tells_runs_apart(
    tmp_path: Path, words: tuple[str, ...], limit: bool, speed: bool
) -> None:
    first = remembered(tmp_path)
    first.note_limit(MODE, LIMIT)
    first.note_speed(MODE, 4, SPEED)
    other = remembered(tmp_path, *words)
    assert other.limit(MODE) == (LIMIT if limit else None)
    assert other.speed(MODE, 4) == (SPEED if speed else None)
    assert (
        other.limit(StepMode(2, False))
        is other.limit(StepMode(1, True))
        is other.speed(MODE, 8)
        is None
    )
    assert remembered(tmp_path, *words, attention="folded").limit(MODE) is None


def test_the_newest_counts_and_what_cannot_be_read_or_written_is_nothing(tmp_path: Path) -> None:
    known = remembered(tmp_path)
    known.note_limit(MODE, LIMIT)
    known.note_limit(MODE, Limit(2, "second"))
    assert known.limit(MODE) == Limit(2, "second")
    (path,) = RootLayout(tmp_path).experience.iterdir()
    for text in (
        "",
        "[]",
        "{}",
        '{"micro_batch": "x", "run": 1}',
        '{"micro_batch": null, "run": "a"}',
    ):
        path.write_text(text)
        assert known.limit(MODE) is None
    missing = remembered(tmp_path / "not" / "there")
    missing.note_limit(MODE, LIMIT)
    assert missing.limit(MODE) is None


def test_a_speed_is_the_median_of_enough_steps_of_this_attempt(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    assert steady_tokens_per_second(run, 0) is None
    rows = [
        {"step": step, "tokens_per_second": 1.0 if step <= 10 else 100.0 + step}
        for step in range(1, 41)
    ]
    rows.append({"step": 41, "heldout_loss": 3.0})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 42, "tok')
    assert steady_tokens_per_second(run, 10) == 100.0 + 25.5
    assert steady_tokens_per_second(run, 21) is None


def test_submit_plans_with_what_its_root_has_seen(tmp_path: Path) -> None:
    config = make_config(f"run.root={tmp_path}", "local=true")
    plain = examine(config).plan
    known = Remembered(RootLayout(tmp_path), config, plain.attention, plain.compile)
    known.note_speed(plain.mode, plain.micro_batch, SPEED)
    found = examine(config).plan
    assert (plain.timed_by, found.timed_by, found.tokens_per_second) == (None, "first", 125.0)
