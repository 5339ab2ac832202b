"""The plan as text."""

from __future__ import annotations

import pytest

from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.experience import Experience, Limit, Speed
from hpc_llm.planning.plan import make_plan
from hpc_llm.planning.render import render
from tests.configs import make_config

CASES = [
    ("model=mpt-7b", "cluster=a100x64"),
    ("experiment=mpt-7b",),
    ("model=mpt-7b", "cluster=a100x8", "optim=cpu_adam", "checkpoint.permanent_every=1e10tok"),
    ("cluster=local-slurm",),
    (),
]


def text(*words: str) -> str:
    config = make_config(*words)
    return render(config, make_plan(config, None))


@pytest.mark.parametrize("words", CASES)
def test_the_plan_fits_a_screen(words: tuple[str, ...]) -> None:
    lines = text(*words).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() for line in lines)


def test_an_engineer_finds_the_numbers_that_matter() -> None:
    shown = text("model=mpt-7b", "cluster=a100x64")
    for part in (
        "mpt-7b: 6.649 B parameters",
        "1,024 sequences of 2,048 tokens = ranks 64 × micro 2 × passes 8",
        "63,900 steps",
        "134 B tokens",
        "GiB usable (92% of a100-80gb)",
        "at 50% MFU (cluster.expected_mfu)",
        "GPU-hours",
        "time limits of 1,440 min",
    ):
        assert part in shown


def test_what_was_given_and_what_was_found_are_told_apart() -> None:
    shown = text("model=mpt-1b", "cluster=a100x64", "train.zero_stage=2").splitlines()
    assert any(line.startswith("ZeRO stage") and line.endswith("2 (given)") for line in shown)
    assert any(line.startswith("micro-batch") and line.endswith("(auto)") for line in shown)


def test_a_chunk_of_the_loss_that_no_pass_fills_is_said_to_have_no_effect() -> None:
    words = ("model=mpt-7b", "cluster=a100x64")  # passes of 2 × 2,048 tokens, of at most 16 × 2,048
    assert "logits of 1,024 tokens at once (given)\n" in text(*words, "train.loss_chunk=1024")
    assert "logits of 8,192 tokens at once (given), no fewer than a pass's" in text(
        *words, "train.loss_chunk=8192"
    )


def test_chunks_that_nobody_asked_for_are_shown_where_a_pass_has_several() -> None:
    words = ("cluster.device=cpu", "train.seq_len=256", "train.global_batch=32")
    assert "logits of 2,048 tokens at once (auto)\n" in text(*words, "train.micro_batch=16")
    assert "tokens at once" not in text(*words, "train.micro_batch=8")
    assert "tokens at once" not in text(*words, "train.micro_batch=16", "train.loss_chunk=null")


class _Known(Experience):
    def limit(self, *_: object) -> Limit | None:
        return Limit(1, "first-try")

    def speed(self, *_: object) -> Speed | None:
        return Speed(1e6, 64, "second-try")


def test_what_runs_have_shown_says_from_which() -> None:
    config = make_config("model=mpt-1b", "cluster=a100x64", "train.zero_stage=2")
    shown = render(config, make_plan(config, None, experience=_Known()))
    assert "1 (auto), more was too much for first-try" in shown
    assert "1,000,000 tokens/s, 15,625 per GPU, at 45% MFU (measured by second-try)" in shown


def test_an_uneven_batch_says_how_many_rows_are_masked() -> None:
    shown = text("cluster=local-slurm", "train.global_batch=18")
    assert "ranks 4 × micro 5 × passes 1 − 2 masked rows (uneven)" in shown


def test_checkpoints_that_stay_for_good_are_counted() -> None:
    words = ("model=mpt-7b", "cluster=a100x64")
    assert "one for good every 10,000 steps too, 6 in all: " in text(
        *words, "checkpoint.permanent_every=10000steps"
    )
    assert "for good" not in text(*words)


def test_an_unknown_machine_has_no_times() -> None:
    assert "not known: needs cluster.gpu and cluster.expected_mfu" in text()


def test_a_warm_up_longer_than_the_run_is_pointed_out() -> None:
    assert "lr never reaches optim.lr=0.002" in text("train.duration=20steps")


def test_the_demo_corpus_for_a_large_model_is_warned_of() -> None:
    words = ("model=mpt-7b", "cluster=a100x64")
    shown = text(*words)
    assert "data            stdlib, about 44,669 epochs\n" in shown
    assert "WARNING         data=stdlib is a try-out of some 3 M tokens" in shown
    assert "WARNING" not in text()


def test_prepared_text_that_is_read_again_and_again_is_warned_of() -> None:
    config = make_config("train.duration=1000steps")
    facts = DataFacts("/data", 100_000, 10_000, 4096, 5.0, {"stdlib": 100_000})
    shown = render(config, make_plan(config, facts))
    assert "data            stdlib in /data, 41.0 epochs\n" in shown
    assert "WARNING         train.duration=1000steps reads stdlib 41.0 times" in shown
