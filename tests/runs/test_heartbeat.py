"""Signs of life: few writes, usual times by phase, and a reader whom nothing confuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hpc_llm.runs import heartbeat
from hpc_llm.runs.heartbeat import Heart, Phase


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def beating(tmp_path: Path, attempt: int = 1) -> tuple[Heart, Clock]:
    clock = Clock()
    return Heart(tmp_path / "n1.beat", attempt, clock), clock


def test_steps_give_their_median_time_once_there_are_enough(tmp_path: Path) -> None:
    heart, clock = beating(tmp_path)
    seen = []
    for step in range(1, 30):
        clock.now += 2.0 if step != 20 else 50.0
        heart.beat(step, Phase.TRAINING)
        seen.append(heartbeat.read(tmp_path, 1)["n1"].usual_s)
    assert seen[:4] == [0.0] * 4
    assert seen[-1] == 2.0


def test_the_next_attempt_knows_from_its_first_step_on(tmp_path: Path) -> None:
    heart, clock = beating(tmp_path)
    for step in range(1, 9):
        clock.now += 2.0
        heart.beat(step, Phase.TRAINING)
    heart.beat(8, Phase.HOLDING)
    later = Heart(tmp_path / "n2.beat", 2, clock)  # on another node
    assert (
        heartbeat.read(tmp_path, 2)["n2"].usual_s == 0.0
    )  # it starts, and nobody knows how long that takes
    later.beat(9, Phase.TRAINING)
    assert heartbeat.read(tmp_path, 2)["n2"].usual_s == 2.0


def test_a_phase_is_as_long_as_its_longest_so_far(tmp_path: Path) -> None:
    heart, clock = beating(tmp_path)
    for seconds in (3.0, 7.0, 5.0):
        heart.beat(1, Phase.SAVING)
        clock.now += seconds
        heart.beat(1, Phase.TRAINING)
        clock.now += 1.0
    heart.beat(1, Phase.SAVING)
    assert heartbeat.read(tmp_path, 1)["n1"].usual_s == 7.0


def test_the_next_attempts_know_from_their_first_save_and_evaluation_on(tmp_path: Path) -> None:
    heart, clock = beating(tmp_path)
    for phase, seconds in ((Phase.SAVING, 7.0), (Phase.EVALUATING, 3.0), (Phase.TRAINING, 1.0)):
        heart.beat(1, phase)
        clock.now += seconds
    heart.beat(2, Phase.HOLDING)
    for attempt in (2, 3):  # the second saves nothing, and tells what it was told
        later = Heart(tmp_path / f"n{attempt}.beat", attempt, clock)
        seen = {}
        for phase in (
            (Phase.SAVING, Phase.EVALUATING, Phase.LEAVING) if attempt == 3 else (Phase.TRAINING,)
        ):
            later.beat(9, phase)
            seen[phase] = heartbeat.read(tmp_path, attempt)[f"n{attempt}"].usual_s
        (tmp_path / f"n{attempt - 1}.beat").unlink()
    assert seen == {Phase.SAVING: 7.0, Phase.EVALUATING: 3.0, Phase.LEAVING: 7.0}


def test_the_longest_line_fits_its_width(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 1e7
    heart = Heart(tmp_path / "n1.beat", 10**6, clock)
    for phase in (Phase.SAVING, Phase.EVALUATING, *[Phase.TRAINING] * 9, Phase.EVALUATING):
        heart.beat(10**9, phase)
        clock.now += 99999.125
    assert (tmp_path / "n1.beat").stat().st_size == 256
    assert heartbeat.read(tmp_path, 10**6)["n1"].save_s == 99999.125


def test_fast_steps_are_written_once_a_second_and_a_new_phase_at_once(tmp_path: Path) -> None:
    heart, clock = beating(tmp_path)
    heart.beat(1, Phase.TRAINING)
    clock.now += 0.1
    heart.beat(2, Phase.TRAINING)
    assert heartbeat.read(tmp_path, 1)["n1"].step == 1
    heart.beat(2, Phase.SAVING)
    assert heartbeat.read(tmp_path, 1)["n1"].step == 2


def test_other_attempts_and_torn_files_are_passed_over(tmp_path: Path) -> None:
    beating(tmp_path, attempt=1)
    (tmp_path / "n2.beat").write_text('{"attempt": 2, "st')
    assert heartbeat.read(tmp_path, 2) == {}
    assert list(heartbeat.read(tmp_path, 1)) == ["n1"]


def test_a_file_that_cannot_be_made_stops_no_rank_and_is_made_once_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "heartbeats"
    clock = Clock()
    heart = Heart(folder / "n1.beat", 1, clock)
    clock.now += 2.0
    heart.beat(1, Phase.TRAINING)
    folder.mkdir()
    clock.now += 2.0
    heart.beat(2, Phase.TRAINING)
    assert heartbeat.read(folder, 1)["n1"].step == 2


def test_after_a_stale_handle_the_file_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that the server does not know any more stays unknown to it."""
    heart = Heart(tmp_path / "n1.beat", 1)
    stale = heart._file
    plain = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if descriptor == stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return plain(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    heart.beat(0, Phase.TRAINING)
    with (tmp_path / "other").open("w"):  # it takes the number that was given back
        heart.beat(5, Phase.SAVING)
    assert heartbeat.read(tmp_path, 1)["n1"].step == 5


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    Heart(tmp_path / "n1.beat", 1).beat(5, Phase.SAVING)
    text = (tmp_path / "n1.beat").read_text()
    (tmp_path / "n1.beat").write_text(text.replace('"step":', '"warmth": 37, "step":'))
    assert heartbeat.read(tmp_path, 1)["n1"].step == 5
