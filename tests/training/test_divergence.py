"""Which data a step takes once some is left out, what a leap is, and where a number was lost."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpc_llm.model.compiler import compile_forward
from hpc_llm.model.not_finite import NotFinite, gradients_of, not_finite
from hpc_llm.training.divergence import SpikeRule, data_step


@given(st.sets(st.integers(0, 60), max_size=20))
def test_steps_take_all_data_in_order_but_what_is_left_out(skipped: set[int]) -> None:
    taken = [data_step(step, skipped) for step in range(100 - len(skipped))]
    assert taken == [step for step in range(100) if step not in skipped]


def test_a_leap_is_measured_against_the_median_of_the_steps_before() -> None:
    rule = SpikeRule(0.5)
    assert [rule.excess(9.0) for _ in range(10)] == [None] * 10  # too few to tell
    assert [rule.excess(2.0) for _ in range(30)] == [None] * 30
    assert rule.excess(2.4) is None
    assert rule.excess(2.6) == 2.6 - 2.0
    assert rule.excess(2.3) is None  # what leapt has not become the measure


def test_without_a_threshold_nothing_is_a_leap() -> None:
    rule = SpikeRule(None)
    assert [rule.excess(loss) for loss in [1.0] * 30 + [1e9]] == [None] * 31


def test_the_first_module_whose_output_is_not_finite_is_the_origin() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
        with not_finite(model) as found:
            model(torch.ones(1, 2))
    assert found.forward == ["1", "2"]
    with torch.no_grad(), not_finite(model) as found:
        model[0](torch.ones(1, 2))
    assert found.forward == []


def lost_in_backward(values: Tensor) -> Tensor:
    values.register_hook(lambda gradient: gradient * float("nan"))
    return values


def test_the_module_whose_backward_first_gives_no_number_is_the_origin() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    poison = model[1].register_forward_hook(lambda _, given, output: lost_in_backward(output))
    with not_finite(model) as found:
        gradients_of(model(torch.ones(1, 2)).sum(), model)
    assert found.forward == []
    assert found.backward[0] == "1"
    assert all(one.grad is None for one in model.parameters())
    poison.remove()
    with not_finite(model) as found:
        gradients_of(model(torch.ones(1, 2)).sum(), model)
    assert found == NotFinite()


def test_a_gradient_that_only_a_weight_has_names_its_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    with not_finite(model) as found:
        gradients_of(model(torch.ones(1, 2)).square().sum(), model)
    assert (found.forward, found.backward) == ([], ["1"])


def test_compiled_modules_are_looked_into() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    compile_forward(model)
    with torch.no_grad():
        model(torch.ones(1, 2))
        model[0].weight[0, 0] = float("nan")
        with not_finite(model) as found:
            model(torch.ones(1, 2))
    assert found.forward == ["0", "1"]
