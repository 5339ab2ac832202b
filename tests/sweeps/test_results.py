"""The numbers of one run, from the files it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.results import final_loss, read
from tests.sweeps.made_up import START, make_run, write


def test_a_run_says_what_it_reached_and_what_it_cost(tmp_path: Path) -> None:
    found = read(make_run(tmp_path / "one", heldout=2.5))
    assert (found.complete, found.step, found.steps) == (True, 100, 100)
    assert found.final_loss == pytest.approx(3.0)
    assert (found.heldout_loss, found.best_loss, found.tokens_per_second) == (2.5, 2.5, 1000.0)
    assert found.gpu_hours == pytest.approx(2.0)
    assert found.config["run.seed"] == 17


def test_the_hours_of_all_attempts_count_and_those_in_the_queue_do_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    write(run, "supervisor-0002", START + 13660, "started", attempt=2, job="8", restarts=0)
    write(run, "supervisor-0002", START + 15460, "ended", attempt=2, cause="crash")
    assert read(run).gpu_hours == pytest.approx(3.0)


def test_an_attempt_costs_what_its_own_machine_held_and_not_what_the_run_moved_to(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "one", "cluster.gpus_per_node=8", complete=False)
    write(
        run, "supervisor-0001", START + 3660, "ended", attempt=1, cause="crash", gpu_hours=2.0
    )  # of two GPUs
    write(run, "supervisor-0002", START + 9000, "started", attempt=2, job="8", restarts=0)
    write(run, "train-0002", START + 9900, "checkpointed", attempt=2, step=50, seconds=1.0)
    assert read(run).gpu_hours == pytest.approx(2.0 + 8 * 0.25)


def test_best_is_the_lowest_evaluation_and_held_out_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", heldout=2.5)
    with run.metrics.open("a") as file:
        file.write('{"step": 100, "heldout_loss": 2.75}\n')
    found = read(run)
    assert (found.heldout_loss, found.best_loss) == (2.75, 2.5)


def test_a_loss_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    found = read(
        make_run(tmp_path / "one", heldout=float("nan"), losses=[5.0] * 99 + [float("nan")])
    )
    assert (found.final_loss, found.heldout_loss, found.best_loss) == (None, None, None)


def test_the_final_loss_of_few_steps_is_the_last_one() -> None:
    assert final_loss([4.0, 3.0], 10) == 3.0
    assert final_loss([], 10) is None


def test_a_run_that_has_only_been_queued_has_no_losses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", complete=False)
    run.metrics.unlink()
    found = read(run)
    assert (found.step, found.final_loss, found.heldout_loss, found.complete) == (
        0,
        None,
        None,
        False,
    )


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    run.plan.write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        read(run)
    run.plan.unlink()
    with pytest.raises(InputError, match="not a run directory"):
        read(run)
