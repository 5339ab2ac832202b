"""What is executed lies in a folder that is this user's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.storage import trust
from tests.runs.machine import NOBODY


def test_a_folder_for_code_is_made_private(tmp_path: Path) -> None:
    made = trust.own_folder(tmp_path / ".compiled")
    assert made == tmp_path / ".compiled"
    assert made.stat().st_mode & 0o077 == 0
    assert trust.own_folder(made) == made


def test_one_that_others_can_write_to_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / ".compiled").mkdir()
    (tmp_path / ".compiled").chmod(0o770)
    with pytest.raises(InputError, match=f"chmod go-w {tmp_path}"):
        trust.own_folder(tmp_path / ".compiled")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder another user's")
def test_another_users_is_left_alone_for_one_of_our_own(tmp_path: Path) -> None:
    (tmp_path / ".compiled").mkdir()
    os.chown(tmp_path / ".compiled", NOBODY, -1)
    assert trust.own_folder(tmp_path / ".compiled") == tmp_path / f".compiled-{os.geteuid()}"
