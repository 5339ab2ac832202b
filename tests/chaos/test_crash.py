"""What a rank dies of is named by its first error, and answered by cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs.freeze import read_plan
from tests.chaos.local_runs import run

pytestmark = pytest.mark.slow

WORDS = ("cluster.gpus_per_node=2", "train.micro_batch=2")


def crash(error: str, attempt: int = 1) -> list[dict[str, Any]]:
    return [{"attempt": attempt, "rank": 1, "kind": "raise", "step": 5, "error": error}]


def test_a_micro_batch_too_large_for_the_gpu_is_halved_once_and_for_good(tmp_path: Path) -> None:
    ranks = WORDS[:1]
    plain = run(tmp_path, "plain", *ranks)
    hurt = run(tmp_path, "large", *ranks, faults=[*crash("gpu-memory"), *crash("bug", attempt=2)])
    assert hurt.status == 0, hurt.output
    assert [end["cause"] for end in hurt.named("ended")] == [
        "gpu-out-of-memory",
        "crash",
        "completed",
    ]
    for attempt, passes in ((1, 1), (2, 2), (3, 2)):
        assert (
            f"micro-batch {2 // passes}, {passes} passes"
            in hurt.layout.rank_log(attempt, 0).read_text()
        )
    assert hurt.losses == pytest.approx(plain.losses, rel=2e-3)  # bf16 adds up in another order

    again = run(tmp_path, "again", *ranks)  # the next run alike does not find it out for itself
    assert "micro-batch 1, 2 passes" in again.layout.rank_log(1, 0).read_text()
    assert read_plan(again.layout).halved_by == "large"
    for name, *words in (("given", *WORDS), ("shorter", *ranks, "train.seq_len=32")):
        assert read_plan(run(tmp_path, name, *words).layout).micro_batch == 2


def test_a_micro_batch_is_halved_until_it_fits_and_no_budget_pays_for_it(tmp_path: Path) -> None:
    large = [*crash("gpu-memory"), *crash("gpu-memory", attempt=2)]
    words = ("cluster.gpus_per_node=2", "train.global_batch=8", "train.micro_batch=4")
    hurt = run(
        tmp_path,
        "large",
        *words,
        "recovery.max_out_of_memory=0",
        "recovery.max_no_progress=1",
        faults=large,
    )
    assert hurt.status == 0, hurt.output
    assert [end.get("micro_batch") for end in hurt.named("ended")] == [2, 1, None]
    # One sequence is the least: what is too much then is charged.
    large += crash("gpu-memory", attempt=3)
    hurt = run(tmp_path, "too-large", *words, "recovery.max_out_of_memory=0", faults=large)
    assert hurt.status == 1, hurt.output
    assert "max_out_of_memory=0" in hurt.named("ended")[-1]["why"]


def test_a_host_that_runs_out_of_memory_is_named(tmp_path: Path) -> None:
    hurt = run(tmp_path, "host", *WORDS, faults=crash("host-memory"))
    assert hurt.status == 0, hurt.output
    assert [end["cause"] for end in hurt.named("ended")] == ["out-of-memory", "completed"]
    assert "can't allocate memory" in hurt.named("ended")[0]["error"]


def test_the_first_traceback_of_the_first_rank_is_what_the_ledger_tells(tmp_path: Path) -> None:
    hurt = run(tmp_path, "bug", *WORDS, faults=crash("bug"))
    end = hurt.named("ended")[0]
    assert (end["cause"], end["error_rank"]) == ("crash", 1)
    assert end["error"] == "ValueError: a bug of the user's"
    assert "ValueError: a bug of the user's" in hurt.layout.supervisor_log(1).read_text()


def test_an_interval_that_is_left_to_the_run_follows_what_its_saves_took_and_how_often_it_failed(
    tmp_path: Path,
) -> None:
    hurt = run(tmp_path, "auto", *WORDS, "checkpoint.every=auto", faults=crash("bug"))
    assert hurt.status == 0, hurt.output
    said = [hurt.layout.rank_log(attempt, 0).read_text() for attempt in (1, 2)]
    first, second = (float(text.partition("saving every ")[2].split()[0]) for text in said)
    assert second < first / 1.4  # one failure more: half the time between them
