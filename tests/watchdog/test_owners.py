"""A watchdog acts only on what its own user wrote and nobody else can change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage import locks
from hpc_llm.storage.files import write_atomic
from hpc_llm.submission import backlog
from hpc_llm.watchdog import __main__ as verb
from hpc_llm.watchdog import notifications
from hpc_llm.watchdog.one_pass import make_pass
from tests.fake_slurm import FakeSlurm, attempt, life, make_run
from tests.runs.machine import NOBODY


def open_to_all(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o022)


def open_to_a_group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a file another user's")
    os.chown(path, NOBODY, -1)


WAYS = [open_to_all, open_to_a_group, given_away]
FILES: dict[str, Callable[[RunLayout], Path]] = {
    "folder": lambda run: run.path,
    "configuration": lambda run: run.config,
    "script": lambda run: run.script,
    "plan": lambda run: run.plan,
    "ledger": lambda run: run.ledger,
    "ledger's file": lambda run: run.ledger / "submit.jsonl",
    "sweep": lambda run: run.path.parent,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_a_run_that_others_could_have_written_is_passed_over_and_said(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], file: str, way: Callable[[Path], None]
) -> None:
    run = make_run(slurm, "s/theirs", "run.sweep=s", job="7_0")
    attempt(run, 1, 3000)
    del slurm.jobs["7_0"]
    slurm.ended["7_0"] = life("7_0", "NODE_FAIL")
    way(FILES[file](run))
    assert make_pass(slurm.root) == []
    assert {call.split()[0] for call in slurm.said} == {"queued"}
    assert f"{run.path}: passed over: " in capsys.readouterr().err


def test_once_it_is_mended_the_next_pass_acts(slurm: FakeSlurm) -> None:
    run = make_run(slurm, "mine", job="7")
    attempt(run, 1, 3000)
    del slurm.jobs["7"]
    slurm.ended["7"] = life("7", "NODE_FAIL")
    run.config.chmod(0o666)
    assert make_pass(slurm.root) == []
    run.config.chmod(0o600)
    assert [seen.decision.action.value for seen in make_pass(slurm.root)] == ["resubmitted"]


@pytest.mark.parametrize("way", WAYS)
def test_commands_that_others_put_into_the_outbox_are_not_run(
    slurm: FakeSlurm, way: Callable[[Path], None]
) -> None:
    told = RootLayout(slurm.root).told
    told.write_text(json.dumps({"notified": {}, "outbox": {"k": [["touch", "x"], {}]}}))
    assert notifications.load(slurm.root).outbox
    way(told)
    assert notifications.load(slurm.root).outbox == {}


@pytest.mark.parametrize("way", WAYS)
def test_scripts_that_others_put_into_the_backlog_are_not_submitted(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], way: Callable[[Path], None]
) -> None:
    folder = RootLayout(slurm.root).backlog
    folder.mkdir()
    (folder / "s.json").write_text("{}")
    assert list(backlog.read_all(slurm.root)) == []
    assert "cannot be read" in capsys.readouterr().err
    way(folder / "s.json")
    assert list(backlog.read_all(slurm.root)) == []
    assert "passed over: " in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "remedy"), [(0o1777, "chmod o-w"), (0o770, "chmod g-w")])
def test_a_root_that_others_can_write_is_refused_with_what_mends_it(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], mode: int, remedy: str
) -> None:
    slurm.root.chmod(mode)
    assert verb.main([str(slurm.root), "--once"]) == 2
    assert f"{remedy} {slurm.root}" in capsys.readouterr().err
    assert slurm.said == []


def test_a_lock_or_a_file_is_never_opened_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    lock = tmp_path / "lock"
    lock.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), locks.held_by_us(lock):
        pass
    target = tmp_path / "target"
    temporary = f".target.{os.uname().nodename}.{os.getpid()}.tmp"
    (tmp_path / temporary).symlink_to(precious)
    write_atomic(target, "new")
    assert (precious.read_text(), target.read_text()) == ("precious", "new")
