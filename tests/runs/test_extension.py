"""A run may be made longer, never shorter, and what its schedule makes of that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.runs import extension
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import Story, read_story
from tests.configs import make_config, planned


def frozen(folder: Path, steps: int) -> RunLayout:
    layout = RunLayout(folder / "run")
    layout.make_folders()
    layout.plan.write_text(json.dumps({"steps": steps, "warmup_steps": 2}))
    return layout


def extended(folder: Path, schedule: str, before: int, now: int) -> extension.Extension | None:
    words = (f"optim.schedule={schedule}", f"train.duration={now}steps", "optim.lr=0.01")
    config = make_config(*words)
    plan = planned(config).plan
    return extension.of(config.optim, plan, frozen(folder, before))


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt"])
def test_a_schedule_that_knows_no_end_goes_on_as_it_was(tmp_path: Path, schedule: str) -> None:
    longer = extended(tmp_path, schedule, 100, 200)
    assert longer is not None
    assert "the learning rate goes on as it was" in longer.told(100)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_one_that_fell_towards_its_end_is_said_to_jump(tmp_path: Path, schedule: str) -> None:
    longer = extended(tmp_path, schedule, 100, 1000)
    assert longer is not None
    text = longer.told(100)
    assert "100 steps become 1,000" in text
    before, after = (float(word) for word in text.split() if word.startswith("0.0"))
    assert after > 1.5 * before


def test_the_same_length_is_no_extension_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    assert extended(tmp_path, "cosine", 200, 200) is None
    with pytest.raises(InputError, match="100 steps are fewer than the 200"):
        extended(tmp_path, "cosine", 200, 100)


def told(folder: Path, *events: dict[str, object]) -> Story:
    ledger = folder / "ledger"
    ledger.mkdir()
    lines = [json.dumps({"time": number, **event}) for number, event in enumerate(events)]
    (ledger / "submit.jsonl").write_text("\n".join(lines) + "\n")
    return read_story(ledger)


SHORT = {"event": "completed", "steps": 6}
LONG = {"event": "completed", "steps": 12}
UNTOLD = {"event": "completed"}


@pytest.mark.parametrize(
    ("events", "steps", "complete"),
    [
        ([SHORT], 6, True),
        ([SHORT], 12, False),
        ([SHORT, LONG], 12, True),
        ([SHORT, LONG], 24, False),
        ([UNTOLD], 12, True),  # the versions before said no steps, and made no run longer
        ([SHORT], 0, True),  # its plan cannot be read
        ([], 12, False),
        ([{"event": "submitted"}], 0, False),
    ],
)
def test_a_run_is_complete_at_the_end_of_its_plan(
    tmp_path: Path, events: list[dict[str, object]], steps: int, complete: bool
) -> None:
    assert told(tmp_path, *events).has_reached(steps) is complete
