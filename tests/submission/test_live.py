"""What a person reads when a local run has ended."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.config import hints
from hpc_llm.config.compose import compose
from hpc_llm.planning.plan import make_plan
from hpc_llm.runs import identity, ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.submission.live import Show

CRASHED = {
    "cause": "crash",
    "first_failed": None,
    "checkpoint_step": 0,
    "why": "3 crashes",
    "restart": False,
}


def said_at_the_end(
    capsys: pytest.CaptureFixture[str], layout: RunLayout, status: int, words: list[str]
) -> list[str]:
    config = compose(words)
    show = Show(layout, make_plan(config, None))
    show.header(config)
    capsys.readouterr()
    show.ending(status, words)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", [[], ["run.name=first"], ["run.name=first-8steps"]])
def test_what_comes_next_is_said_in_the_users_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: list[str]
) -> None:
    words = [
        f"run.root={tmp_path}",
        "model=mpt-125m",
        *name,
        "train.duration=8steps",
        "trackers=[tensorboard]",
    ]
    layout = identity.layout_for(compose(words))
    layout.tensorboard.mkdir(parents=True)
    *_, pages, longer = said_at_the_end(capsys, layout, 0, words)
    assert shlex.split(pages) == [
        "python",
        "-m",
        "hpc_llm.status",
        str(layout.path),
        "--tensorboard",
    ]
    typed = shlex.split(longer, comments=True)
    assert typed[:3] == ["python", "-m", "hpc_llm.submit"]
    config = compose(typed[3:])
    assert (config.model.name, config.train.duration) == ("mpt-125m", "16steps")
    assert identity.layout_for(config) == layout  # the same run goes on


def test_an_attempt_without_an_end_is_not_given_an_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run.root={tmp_path}", "run.name=first"]
    layout = RunLayout(tmp_path / "first")
    layout.make_folders()

    def note(event: str, **facts: Any) -> None:
        ledger.Ledger(layout.ledger, "test").write(event, **facts)

    note("submitted", after_attempt=0)
    note("started", attempt=1, checkpoint_step=0)
    note("ended", attempt=1, **CRASHED)
    assert (
        said_at_the_end(capsys, layout, 1, words)[0]
        == "crash in attempt 1; newest checkpoint: step 0"
    )
    note("submitted", after_attempt=1)
    assert said_at_the_end(capsys, layout, 1, words) == [
        f"go on with: {hints.command('submit', *words)}"
    ]
    note("started", attempt=2, checkpoint_step=0)
    assert said_at_the_end(capsys, layout, 1, words)[0] == (
        "attempt 2 was left by its supervisor, which died or was killed; its log: "
        f"{layout.supervisor_log(2)}"
    )
