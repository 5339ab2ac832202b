"""Which data a step takes once some is left out, what a leap is, and where a number was lost."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpc_llm.training.divergence import SpikeRule, data_step, first_not_finite


@given(st.sets(st.integers(0, 60), max_size=20))
def test_steps_take_all_data_in_order_but_what_is_left_out(skipped: set[int]) -> None:
    taken = [data_step(step, skipped) for step in range(100 - len(skipped))]
    assert taken == [step for step in range(100) if step not in skipped]


def test_a_leap_is_measured_against_the_median_of_the_steps_before() -> None:
    rule = SpikeRule(0.5)
    assert [rule.leap(9.0) for _ in range(10)] == [None] * 10  # too few to tell
    assert [rule.leap(2.0) for _ in range(30)] == [None] * 30
    assert rule.leap(2.4) is None
    assert rule.leap(2.6) == 2.6 - 2.0
    assert rule.leap(2.3) is None  # what leapt has not become the measure


def test_without_a_threshold_nothing_is_a_leap() -> None:
    rule = SpikeRule(None)
    assert [rule.leap(loss) for loss in [1.0] * 30 + [1e9]] == [None] * 31


def test_the_first_module_whose_output_is_not_finite_is_the_origin() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
        with first_not_finite(model) as found:
            model(torch.ones(1, 2))
    assert found == ["1", "2"]
    with torch.no_grad(), first_not_finite(model) as found:
        model[0](torch.ones(1, 2))
    assert found == []
