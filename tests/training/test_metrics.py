"""A step's numbers on their way to the host."""

from __future__ import annotations

import math

import pytest
import torch

from hpc_llm.trackers.protocol import Row
from hpc_llm.training.divergence import SpikeRule
from hpc_llm.training.metrics import Metrics, Pending, Readout
from hpc_llm.zero.engine import StepOutput


def read(
    loss_sum: float, grad_norm: float | torch.Tensor, counts: list[int]
) -> tuple[float, float, list[int], list[int]]:
    loss = torch.tensor(loss_sum)
    times = torch.tensor([7, 0, 12])
    return Readout(StepOutput(loss, torch.tensor(counts), times, grad_norm)).read()


def test_numbers_arrive_as_they_left() -> None:
    loss = torch.tensor(1234567.875)
    norm = torch.tensor(0.1)
    found = read(float(loss), norm, [2**40 + 1, 0, 3])
    assert found == (float(loss), float(norm), [2**40 + 1, 0, 3], [7, 0, 12])
    assert read(1.5, 0.25, [4]) == (1.5, 0.25, [4], [7, 0, 12])


def test_what_is_not_finite_arrives_so() -> None:
    loss, norm, _, _ = read(math.nan, math.inf, [1])
    assert math.isnan(loss) and norm == math.inf


class Rows(list[Row]):
    log = list.append

    def close(self) -> None: ...


def test_mfu_is_of_the_flops_of_the_very_step() -> None:
    """Sequences that are shorter at first take fewer for each token."""
    rows = Rows()
    metrics = Metrics(
        [rows], 100, lambda step: 2.0 * step, 1e4, SpikeRule(None), lambda *_: None, lambda: 0.0
    )
    for step in (1, 2):
        numbers = Readout(
            StepOutput(torch.tensor(1.0), torch.tensor([100]), torch.tensor([1]), 0.1)
        )
        metrics.push(Pending(step, 0.1, numbers, 0.0, 0.0, launched_at=0.5 * step))
        metrics.flush()
    assert [row["mfu"] for row in rows] == [200 * 2 / 1e4, 200 * 4 / 1e4]


def test_a_run_on_a_cpu_tells_the_process_memory_where_a_gpu_is_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = Rows()
    metrics = Metrics(
        [rows], 100, lambda step: 2.0, 1e4, SpikeRule(None), lambda *_: None, lambda: 0.0
    )
    numbers = Readout(StepOutput(torch.tensor(1.0), torch.tensor([100]), torch.tensor([1]), 0.1))
    metrics.push(Pending(1, 0.1, numbers, 0.0, 0.0, launched_at=0.5))
    metrics.flush()
    assert float(rows[0]["memory_gib"]) > 0.01


def test_a_step_without_targets_is_a_row_without_loss() -> None:
    rows = Rows()
    metrics = Metrics(
        [rows], 100, lambda step: 2.0, 1e4, SpikeRule(None), lambda *_: None, lambda: 0.0
    )
    numbers = Readout(StepOutput(torch.tensor(0.0), torch.tensor([0]), torch.tensor([1]), 0.0))
    metrics.push(Pending(1, 0.1, numbers, 0.0, 0.0, launched_at=0.5))
    metrics.flush()
    assert "loss" not in rows[0]
    assert (rows[0]["step"], rows[0]["masked"]) == (1, 1.0)
