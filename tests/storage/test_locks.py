"""Locks of a run and of the watchdog, also where the file system has none or fails."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.runs.layout import RunLayout
from hpc_llm.storage.locks import held_by_us, is_held


def failing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_held_until_its_context_ends(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    assert not is_held(run.lock)
    with held_by_us(run.lock) as first, held_by_us(run.lock) as second:
        assert (first, second) == (True, False)
        assert is_held(run.lock)
    assert not is_held(run.lock)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_there_are_no_locks_it_says_so_once_and_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(number, monkeypatch)
    run = RunLayout(tmp_path)
    for _ in range(2):
        with held_by_us(run.lock) as ours:
            assert ours
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run.lock) in line and os.strerror(number) in line
    assert not is_held(run.lock)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_what_another_process_has_is_held(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(number, monkeypatch)
    run = RunLayout(tmp_path)
    with held_by_us(run.lock) as ours:
        assert not ours
    assert is_held(run.lock)


def test_any_other_failure_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunLayout(tmp_path)
    run.lock.touch()
    failing(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match=str(run.lock)), held_by_us(run.lock):
        pass
    with pytest.raises(InputError, match=str(run.lock)):
        is_held(run.lock)
