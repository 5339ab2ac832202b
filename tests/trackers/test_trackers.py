"""Metrics reach their files, and a resumed run leaves no row twice."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hpc_llm.config.schema import TrackersConfig
from hpc_llm.trackers import jsonl
from hpc_llm.trackers import open as opening
from hpc_llm.trackers.hyperparameters import hyperparameters
from hpc_llm.trackers.jsonl import JsonlTracker
from hpc_llm.trackers.open import OPENERS, Bystander, Opening, open_trackers
from hpc_llm.trackers.protocol import Row, Tracker
from hpc_llm.trackers.tensorboard import TensorboardTracker
from tests.configs import make_config


def rows(first: int, last: int) -> list[dict[str, float | int]]:
    return [{"step": step, "loss": 1 / (3 * step)} for step in range(first, last + 1)]


def test_resuming_cuts_the_rows_after_the_checkpoint_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, 0, lambda: None)
    for row in rows(1, 9):
        tracker.log(row)
    tracker.close()
    with path.open("a") as file:
        file.write('{"step": 10, "lo')
    tracker = JsonlTracker(path, 6, lambda: None)
    tracker.log({"step": 7, "loss": 0.5})
    tracker.close()
    assert jsonl.read(path) == [*rows(1, 6), {"step": 7, "loss": 0.5}]


def test_losses_survive_the_file_to_the_last_bit(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", 0, lambda: None)
    for row in rows(1, 50):
        tracker.log(row)
    assert jsonl.read(tmp_path / "metrics.jsonl") == rows(1, 50)


def test_a_fenced_attempt_writes_no_row(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("fenced")

    tracker = JsonlTracker(tmp_path / "metrics.jsonl", 0, refuse)
    with pytest.raises(RuntimeError):
        tracker.log({"step": 1})
    assert jsonl.read(tmp_path / "metrics.jsonl") == []


@contextlib.contextmanager
def full(num_bytes: int) -> Iterator[None]:
    """Files of this process end at `num_bytes`, in the middle of a line or between two."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [0, 1, 17])
def test_rows_that_find_no_room_are_written_once_there_is_some(
    tmp_path: Path, more: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, 0, lambda: None)
    for row in rows(1, 3):
        tracker.log(row)
    with full(path.stat().st_size + more):
        for row in rows(4, 6):
            tracker.log(row)
    assert path.read_bytes().endswith(b"\n"), "no part of a row is left"
    assert jsonl.read(path) == rows(1, 3)
    assert len(caplog.messages) == 1
    tracker.log(rows(7, 7)[0])
    assert jsonl.read(path) == rows(1, 7)
    with full(path.stat().st_size + more):
        tracker.log(rows(8, 8)[0])
    tracker.close()
    assert jsonl.read(path) == rows(1, 8)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize("where", ["row", "opening", "fence"])
def test_rows_wait_while_the_file_system_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    """The descriptor that was open is of no use afterwards: a stale one stays stale."""
    away: list[str] = []

    def refuse(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    def fence() -> None:
        if "fence" in away:
            refuse()

    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, 0, fence)
    tracker.log(rows(1, 1)[0])
    with monkeypatch.context() as patched:
        away.append(where)
        if where != "fence":
            patched.setattr(jsonl, "append_whole", refuse)
        for row in rows(2, 4):
            tracker.log(row)
        if where == "opening":
            patched.setattr(jsonl, "open_for_lines", refuse)
            tracker.log(rows(5, 5)[0])
        away.clear()
    assert jsonl.read(path) == rows(1, 1)
    waiting = rows(2, 5) if where == "opening" else rows(2, 4)
    assert tracker.num_waiting == len(waiting)
    tracker.close()
    assert jsonl.read(path) == rows(1, 1) + waiting


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # it is the writer's own thread
def test_a_full_disk_costs_tensorboard_rows_and_not_the_run(tmp_path: Path) -> None:
    tracker = TensorboardTracker(tmp_path, 0, every=1, again_s=0.0)
    with full(1):
        for row in rows(1, 3):
            tracker.log(row)
            tracker.flush()
    for row in rows(4, 9):
        tracker.log(row)
    tracker.close()
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("loss")[-1].step == 9


def test_tensorboard_gets_every_nth_step_and_every_held_out_loss(tmp_path: Path) -> None:
    tracker = TensorboardTracker(tmp_path, 0, every=4)
    for row in rows(1, 9):
        tracker.log(row)
    tracker.log({"step": 9, "heldout_loss": 2.5})
    tracker.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 4, 8]
    assert [(event.step, event.value) for event in found.Scalars("heldout_loss")] == [(9, 2.5)]


@pytest.mark.parametrize("again", [0, 4])
def test_a_resumed_run_shows_no_step_twice_in_tensorboard(tmp_path: Path, again: int) -> None:
    """Also one that had no checkpoint, and begins again."""
    for start, last in ((0, 8), (again, 12)):
        tracker = TensorboardTracker(tmp_path, start, every=1)
        for row in rows(start + 1, last):
            tracker.log(row)
        tracker.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 13))


def test_tensorboard_knows_what_a_run_was_and_which_of_its_scalars_to_draw_against_it(
    tmp_path: Path,
) -> None:
    for start in (0, 0, 3):
        tracker = TensorboardTracker(
            tmp_path, start, every=1, hyperparameters=hyperparameters(make_config("optim.lr=2e-4"))
        )
        tracker.log({"step": start + 1, "loss": 2.5})
        tracker.close()
    assert len(list(tmp_path.glob("events*"))) == 3, "its words stay with the run that has them"
    found = EventAccumulator(str(tmp_path)).Reload()
    said = {
        tag: HParamsPluginData.FromString(content)
        for tag, content in found.PluginTagToContent("hparams").items()
    }
    values = said["_hparams_/session_start_info"].session_start_info.hparams
    assert values["optim.lr"].number_value == 2e-4
    assert values["model"].string_value == "mpt-tiny"
    metrics = [info.name.tag for info in said["_hparams_/experiment"].experiment.metric_infos]
    assert "loss" in metrics and "heldout_loss" in metrics
    assert found.Tags()["scalars"] == ["loss"]


def opened(folder: Path, *words: str, start: int = 0) -> list[Tracker]:
    config = make_config(*words)
    metrics = folder / "metrics.jsonl"
    return open_trackers(Opening(config, start, metrics, lambda name: folder / name, lambda: None))


def test_every_tracker_of_the_configuration_can_be_opened() -> None:
    assert set(OPENERS) == {field.name for field in dataclasses.fields(TrackersConfig)}


@pytest.mark.parametrize(("words", "number"), [("trackers=[]", 1), ("trackers=[tensorboard]", 2)])
def test_exact_rows_come_first_and_then_what_the_run_asks_for(
    tmp_path: Path, words: str, number: int
) -> None:
    trackers = opened(tmp_path, words)
    assert len(trackers) == number
    assert isinstance(trackers[0], JsonlTracker)
    for tracker in trackers:
        tracker.log({"step": 1, "loss": 2.5})
        tracker.close()
    assert jsonl.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]
    assert (tmp_path / "tensorboard").exists() is (number == 2)


class Failing:
    """Takes `rows` rows, and no more."""

    def __init__(self, num_rows: int) -> None:
        self.left = num_rows
        self.closed = False

    def log(self, row: Row) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no connection")

    def close(self) -> None:
        self.closed = True
        raise RuntimeError("still no connection")


def test_a_tracker_that_fails_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(1)
    tracker = Bystander("mine", failing)
    for row in rows(1, 4):
        tracker.log(row)
    tracker.close()
    assert (failing.left, failing.closed) == (-1, False)
    assert caplog.messages == ["trackers: mine failed and is left out from now on: no connection"]


def test_a_tracker_that_fails_as_it_closes_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Bystander("mine", Failing(1)).close()
    assert "still no connection" in caplog.text


def test_a_tracker_that_cannot_be_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(opening: Opening, settings: object) -> Tracker:
        raise ModuleNotFoundError("No module named 'mine'")

    monkeypatch.setitem(opening.OPENERS, "tensorboard", refuse)
    assert len(opened(tmp_path, "trackers=[tensorboard]")) == 1
    assert "tensorboard cannot be opened and is left out: No module named 'mine'" in caplog.text
