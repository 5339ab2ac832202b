"""Users are notified once per run or sweep, and of nodes that are excluded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.runs.layout import RootLayout
from hpc_llm.watchdog import notifications, one_pass
from tests.fake_slurm import (
    FakeSlurm,
    Killed,
    attempt,
    make_run,
    write,
)


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What the user's command was given."""
    (tmp_path / "tell").write_text(f'#!/bin/bash\ncd "{tmp_path}"\n{{ cat; echo; }} >>said\n')
    (tmp_path / "tell").chmod(0o755)
    said = tmp_path / "said"
    return lambda: (
        [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    )


def test_a_user_is_told_once_per_sweep_and_not_once_per_task(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    runs = [
        make_run(
            slurm,
            f"sweep/{n}",
            f"recovery.notify=['{tmp_path}/tell']",
            job=f"20_{n}",
            state="COMPLETED",
        )
        for n in range(5)
    ]
    for number, run in enumerate(runs):
        attempt(run, 1, 3000, cause="diverged" if number < 3 else "completed")
        if number >= 3:
            write(run, 10, "supervisor-0001", "completed", attempt=1)
    for _ in range(3):
        one_pass.make_pass(slurm.root)
    failed, ended = told()
    assert (failed["event"], failed["name"], failed["why"]) == ("failed", "sweep", "diverged")
    assert (ended["event"], ended["runs"], ended["completed"]) == ("ended", 5, 2)


def test_a_sweep_in_several_arrays_is_one_sweep_until_its_user_submits_it_again(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    notify = f"recovery.notify=['{tmp_path}/tell']"
    runs = [
        make_run(slurm, f"sweep/{n}", notify, job=f"{20 + n}_0", state="RUNNING") for n in range(3)
    ]
    late = make_run(slurm, "sweep/3", notify)  # Slurm had no room for it
    write(late, 3600, "submit", "waiting", why="MaxSubmitJobs")
    for run in runs[:2]:
        attempt(run, 1, 3000, cause="diverged")
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed"]
    write(late, 0, "submit", "submitted", job="30_3")
    for run in (runs[2], late):
        attempt(run, 1, 0, cause="diverged")
    slurm.jobs.clear()
    slurm.put("30_3", "FAILED", name="sweep", work_dir=str(slurm.root / "sweep"))
    for _ in range(2):
        one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]
    write(runs[0], 0, "submit", "submitted", job="40_0")
    attempt(runs[0], 2, 0, cause="diverged")
    slurm.put("40_0", "FAILED", name="sweep", work_dir=str(slurm.root / "sweep"))
    RootLayout(slurm.root).census.unlink()  # all are looked at again
    for _ in range(2):
        one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"] * 2


def test_a_message_that_could_not_be_sent_is_sent_by_the_next_pass(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    (tmp_path / "tell").chmod(0o600)
    one_pass.make_pass(slurm.root)
    assert "recovery.notify" in capsys.readouterr().err
    (tmp_path / "tell").chmod(0o755)
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]


@pytest.mark.parametrize("census_now", [None, '{"version": 2, "runs": {}}', "{"])
def test_what_was_told_is_not_told_again_when_the_census_is_made_anew(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    census_now: str | None,
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    one_pass.make_pass(slurm.root)
    before = told()
    path = RootLayout(slurm.root).census
    assert [event["event"] for event in before] == ["failed", "ended"]
    path.unlink() if census_now is None else path.write_text(census_now)
    one_pass.make_pass(slurm.root)
    assert told() == before


def test_what_an_earlier_version_told_is_not_told_again(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """It kept that in its census."""
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")
    earlier = {"version": 2, "notified": {"failed one 12": time.time()}, "outbox": {}}
    RootLayout(slurm.root).census.write_text(json.dumps(earlier))
    for _ in range(2):
        one_pass.make_pass(slurm.root)
        RootLayout(slurm.root).census.unlink()
    assert [event["event"] for event in told()] == ["ended"]


def test_what_ended_so_long_ago_that_it_may_have_been_told_is_no_news(
    slurm: FakeSlurm, told: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    run = make_run(slurm, "one", f"recovery.notify=['{tmp_path}/tell']")
    write(run, 101 * 86400, "submit", "submitted", job="12")
    attempt(run, 1, 100 * 86400, cause="diverged")
    one_pass.make_pass(slurm.root)
    assert told() == []


def test_a_message_survives_a_watchdog_that_is_killed_before_it_saves_its_census(
    slurm: FakeSlurm,
    told: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(
        slurm, "one", f"recovery.notify=['{tmp_path}/tell']", job="12", state="COMPLETED"
    )
    attempt(run, 1, 3000, cause="diverged")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(notifications, "send", killed)
        one_pass.make_pass(slurm.root)
    one_pass.make_pass(slurm.root)
    assert [event["event"] for event in told()] == ["failed", "ended"]
