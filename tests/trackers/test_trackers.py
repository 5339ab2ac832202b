"""Metrics reach their files, and a resumed run leaves no row twice."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hpc_llm.trackers import jsonl, tensorboard
from hpc_llm.trackers.jsonl import JsonlTracker
from hpc_llm.trackers.tensorboard import TensorboardTracker, treatment_of
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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # it is the writer's own thread
def test_a_full_disk_costs_tensorboard_rows_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "_AGAIN_S", 0.0)
    tracker = TensorboardTracker(tmp_path, 0, every=1)
    with full(1):
        for row in rows(1, 3):
            tracker.log(row)
            if tracker._writer is not None:
                with contextlib.suppress(OSError):
                    tracker._writer.flush()
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
            tmp_path, start, every=1, treatment=treatment_of(make_config("optim.lr=2e-4"))
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
