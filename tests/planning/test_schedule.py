"""The learning rate is a function of the step."""

from __future__ import annotations

import dataclasses

import pytest

from hpc_llm.planning.schedule import learning_rate
from tests.configs import make_config

OPTIM = dataclasses.replace(make_config().optim, lr=1.0, min_lr_ratio=0.1, decay_fraction=0.25)
STEPS = 101
WARMUP = 10


def rates(schedule: str) -> list[float]:
    optim = dataclasses.replace(OPTIM, schedule=schedule)
    return [learning_rate(optim, step, STEPS, WARMUP) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt", "wsd", "constant"])
def test_every_schedule_warms_up_linearly_and_never_leaves_its_bounds(schedule: str) -> None:
    found = rates(schedule)
    assert found[:WARMUP] == pytest.approx([(step + 1) / WARMUP for step in range(WARMUP)])
    assert all(0.1 - 1e-12 <= rate <= 1 for rate in found[WARMUP:])
    assert found[WARMUP:] == sorted(found[WARMUP:], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [
        ("cosine", 0.55, 0.1),
        ("linear", 0.55, 0.1),
        ("inverse_sqrt", (10 / 56) ** 0.5, (10 / 101) ** 0.5),
        ("wsd", 1.0, 0.1),
        ("constant", 1.0, 1.0),
    ],
)
def test_a_schedule_has_its_formulas_values_half_way_and_at_the_end(
    schedule: str, middle: float, last: float
) -> None:
    found = rates(schedule)
    assert found[55] == pytest.approx(middle)
    assert found[-1] == pytest.approx(last)


def test_wsd_holds_until_its_decay_begins_and_then_falls_linearly() -> None:
    found = rates("wsd")
    start = STEPS - 1 - int(STEPS * OPTIM.decay_fraction)
    assert set(found[WARMUP:start]) == {1.0}
    drops = [
        before - after
        for before, after in zip(found[start + 1 : -1], found[start + 2 :], strict=True)
    ]
    assert max(drops) - min(drops) < 1e-9


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(OPTIM, 0, STEPS, 0) == pytest.approx(1.0)
