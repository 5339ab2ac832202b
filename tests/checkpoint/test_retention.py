"""Which checkpoints stay, and that a deletion cut short leaves none that looks valid."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.manifest import NAME, FileEntry, Manifest, folder_of, steps
from hpc_llm.checkpoint.retention import clear_reshaped, prune, remove, to_delete
from tests.runs.machine import killed_at

STEPS = st.sets(st.integers(0, 2000), max_size=30)
KEEP = st.integers(1, 5)
PERMANENT = st.none() | st.integers(1, 500)
FILES = ("model.pt", "optim.pt", "zzz.pt")


def checkpoint(checkpoints: Path, step: int) -> Path:
    folder = folder_of(checkpoints, step)
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(b"x")
    files = [FileEntry(name, 1, "") for name in FILES]
    manifest.publish(folder, Manifest(step, 0, 1, 1, 1, "bf16", "torch_adam", {}, files))
    return folder


def leavings(checkpoints: Path, step: int) -> Path:
    """Files of a save that was cut short."""
    folder = checkpoint(checkpoints, step)
    (folder / NAME).unlink()
    return folder


@settings(deadline=None)
@given(STEPS, KEEP, PERMANENT)
def test_the_newest_and_the_permanent_stay_and_no_others(
    present: set[int], keep: int, permanent: int | None
) -> None:
    gone = set(to_delete(present, keep, permanent))
    newest = set(sorted(present, reverse=True)[:keep])
    lasting = {step for step in present if permanent and step % permanent == 0}
    assert gone == present - newest - lasting
    assert len(present - gone) >= min(keep, len(present))


@settings(deadline=None)
@given(STEPS, KEEP, PERMANENT)
def test_pruning_twice_is_pruning_once(present: set[int], keep: int, permanent: int | None) -> None:
    left = present - set(to_delete(present, keep, permanent))
    assert to_delete(left, keep, permanent) == []


@settings(deadline=None)
@given(st.integers(1, 100), KEEP, st.integers(1, 10))
def test_a_run_that_saves_and_prunes_keeps_what_one_that_prunes_once_keeps(
    saves: int, keep: int, nth: int
) -> None:
    every = 20
    left: set[int] = set()
    for number in range(1, saves + 1):
        left.add(number * every)
        left -= set(to_delete(left, keep, nth * every))
    all_of_them = {number * every for number in range(1, saves + 1)}
    assert left == all_of_them - set(to_delete(all_of_them, keep, nth * every))


@settings(max_examples=20, deadline=None)
@given(
    present=st.sets(st.integers(1, 30), max_size=6),
    cut_short=st.sets(st.integers(1, 30), max_size=4),
    keep=KEEP,
)
def test_pruning_leaves_whole_checkpoints_alone_and_clears_leavings_that_are_past(
    tmp_path_factory: pytest.TempPathFactory, present: set[int], cut_short: set[int], keep: int
) -> None:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    for step in present:
        checkpoint(checkpoints, step)
    for step in cut_short - present:
        leavings(checkpoints, step)
    gone = prune(checkpoints, keep, None)
    assert gone == to_delete(present, keep, None)
    assert steps(checkpoints) == sorted(present - set(gone))
    newest = max(present, default=0)
    being_written = {step for step in cut_short - present if not present or step > newest}
    assert {int(folder.name[5:]) for folder in checkpoints.iterdir()} == (
        present - set(gone)
    ) | being_written
    for step in present - set(gone):
        assert {path.name for path in folder_of(checkpoints, step).iterdir()} == {*FILES, NAME}


def test_a_deletion_killed_at_any_moment_leaves_no_damaged_checkpoint_that_looks_valid(
    tmp_path: Path,
) -> None:
    kills = 0
    while True:
        checkpoints = tmp_path / str(kills)
        for step in (10, 20):
            checkpoint(checkpoints, step)
        if not killed_at(kills, checkpoints, partial(prune, checkpoints, 1, None)):
            break
        for step in steps(checkpoints):
            assert {path.name for path in folder_of(checkpoints, step).iterdir()} == {*FILES, NAME}
        kills += 1
        prune(checkpoints, 1, None)  # the next save clears what is left
        assert [path.name for path in checkpoints.iterdir()] == ["step-00000020"]
    # The manifest moves aside; then go the files, the manifest and the folder.
    assert kills == 1 + len(FILES) + 1 + 1


def test_what_somebody_puts_beside_checkpoints_is_not_pruned(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint(tmp_path, step)
    for name in ("step-00000010.bak", "best"):
        shutil.copytree(folder_of(tmp_path, 10), tmp_path / name)
        (tmp_path / name / NAME).unlink()
    assert prune(tmp_path, 1, None) == [10]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "step-00000010.bak",
        "step-00000020",
    ]


def test_what_a_killed_attempt_had_reshaped_goes_with_the_next_save(tmp_path: Path) -> None:
    for step in (10, 20):
        shutil.copytree(checkpoint(tmp_path, step), manifest.reshaped_of(folder_of(tmp_path, step)))
    assert steps(tmp_path) == [10, 20]
    clear_reshaped(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_checkpoint_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    remove(folder_of(tmp_path, 10))
    assert prune(tmp_path, 1, None) == []
    assert prune(tmp_path / "not-there", 1, None) == []
