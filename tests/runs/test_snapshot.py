"""Snapshots of the code are what they were made as, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.runs import snapshot
from tests.runs.machine import NOBODY

FILE = Path("hpc_llm", "training", "loop.py")


def thinned_out(made: Path) -> None:
    (made / FILE).unlink()


def edited(made: Path) -> None:
    (made / FILE).write_text("raise SystemExit('edited')\n")


def emptied(made: Path) -> None:
    (made / FILE).write_text("")


HARM = [thinned_out, edited, emptied]


@pytest.mark.parametrize("harm", HARM)
def test_a_snapshot_that_was_purged_or_edited_is_written_anew_by_the_next_submission(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    made = snapshot.make(tmp_path)
    whole = (made / FILE).read_bytes()
    harm(made)
    assert snapshot.make(tmp_path) == made
    assert (made / FILE).read_bytes() == whole
    snapshot.require_whole(made)


@pytest.mark.parametrize("harm", HARM)
def test_a_supervisor_does_not_start_from_one(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    made = snapshot.make(tmp_path)
    snapshot.require_whole(made)
    harm(made)
    with pytest.raises(InputError, match="submit the run again"):
        snapshot.require_whole(made)


def test_a_module_that_somebody_adds_is_seen(tmp_path: Path) -> None:
    made = snapshot.make(tmp_path)
    (made / "hpc_llm" / "runs" / "json.py").write_text("")
    with pytest.raises(InputError, match="is not the code that it was"):
        snapshot.require_whole(made)


@pytest.mark.parametrize("where", ["..", ".", "hpc_llm", str(FILE)])
def test_one_that_others_can_write_to_is_never_executed(tmp_path: Path, where: str) -> None:
    made = snapshot.make(tmp_path)
    (made / where).resolve().chmod(0o777)
    for check in (lambda: snapshot.make(tmp_path), lambda: snapshot.require_whole(made)):
        with pytest.raises(InputError, match=r"others can write to .* chmod go-w"):
            check()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file another user's")
@pytest.mark.parametrize("where", [".", str(FILE)])
def test_one_that_another_user_laid_there_is_never_executed(tmp_path: Path, where: str) -> None:
    made = snapshot.make(tmp_path)
    os.chown(made / where, NOBODY, -1)
    for check in (lambda: snapshot.make(tmp_path), lambda: snapshot.require_whole(made)):
        with pytest.raises(InputError, match="belongs to nobody"):
            check()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file another user's")
def test_in_a_root_of_several_users_each_has_snapshots_of_their_own(tmp_path: Path) -> None:
    theirs = snapshot.make(tmp_path)
    os.chown(theirs.parent, NOBODY, -1)
    mine = snapshot.make(tmp_path)
    assert mine != theirs
    snapshot.require_whole(mine)
