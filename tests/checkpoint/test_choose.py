"""All ranks agree on the newest checkpoint that is whole. Ranks are threads that meet at every
gather.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.checkpoint import choose as choice_module
from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.choose import Choice, newest_valid
from hpc_llm.checkpoint.errors import NoValidCheckpoint
from hpc_llm.checkpoint.manifest import NAME, FileEntry, Manifest, folder_of
from hpc_llm.storage import patience
from hpc_llm.storage.files import sha256_file

FILES = ("model-0.pt", "model-1.pt", "optim-0.pt", "optim-1.pt", "rng.pt")
_LIMIT_S = 20.0  # a rank that does not come to a gather fails the test


class Ranks:
    """As many threads as ranks; `gather` gives every one of them the objects of all."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._meet = threading.Barrier(world_size, timeout=_LIMIT_S)
        self._slots: list[Any] = [None] * world_size

    def run(self, story: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
        """What `story(rank, gather)` returned or raised on every rank."""

        def one(rank: int) -> Any:
            def gather(value: Any) -> list[Any]:
                self._slots[rank] = value
                self._meet.wait()
                all_of_them = list(self._slots)
                self._meet.wait()
                return all_of_them

            try:
                return story(rank, gather)
            except NoValidCheckpoint as error:
                return error
            except BaseException:
                self._meet.abort()
                raise

        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(one, range(self.world_size)))


def choose(checkpoints: Path, world_size: int = 2, known_steps: int = 0) -> Any:
    """What all ranks agree on: a Choice, or NoValidCheckpoint."""
    found = Ranks(world_size).run(
        lambda rank, gather: newest_valid(checkpoints, known_steps, rank, world_size, gather)
    )
    assert len({str(each) for each in found}) == 1, "ranks disagree"
    return found[0]


def chosen(checkpoints: Path, world_size: int = 2, known_steps: int = 0) -> Choice:
    found = choose(checkpoints, world_size, known_steps)
    assert isinstance(found, Choice)
    return found


def checkpoint(checkpoints: Path, step: int) -> Path:
    folder = folder_of(checkpoints, step)
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} of {step}".encode() * 10)
    files = [
        FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name))
        for name in FILES
    ]
    manifest.publish(folder, Manifest(step, step * 64, 1, 2, 1, "bf16", "torch_adam", {}, files))
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "content does not match its SHA-256": lambda folder: flip(folder / FILES[0]),
    "bytes, ": lambda folder: cut(folder / FILES[1]),
    "No such file or directory": lambda folder: (folder / FILES[4]).unlink(),
    "manifest unreadable": lambda folder: cut(folder / NAME) or cut(folder / NAME),  # type: ignore[func-returns-value]
    "manifest of step": lambda folder: (folder / NAME).write_text(
        (folder / NAME).read_text().replace('"step": ', '"step": 9')
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 5, 8])
def test_all_ranks_take_the_newest(tmp_path: Path, world_size: int) -> None:
    for step in (10, 30, 20):
        checkpoint(tmp_path, step)
    choice = chosen(tmp_path, world_size, known_steps=30)
    assert choice.manifest == manifest.read(folder_of(tmp_path, 30))
    assert choice.rejected == []


def test_what_ranks_tell_each_other_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)

    def told(rank: int, gather: Callable[[Any], list[Any]]) -> bytes:
        gathered = list[Any]()

        def listen(value: Any) -> list[Any]:
            gathered.append(value)
            return gather(value)

        newest_valid(tmp_path, 0, rank, 2, listen)
        return pickle.dumps(gathered)

    for sent in Ranks(2).run(told):
        assert not [name for name in FILES if name.encode() in sent]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("why", DAMAGE)
def test_a_damaged_one_is_passed_over_for_the_newest_whole_one_and_why(
    tmp_path: Path, world_size: int, why: str
) -> None:
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    DAMAGE[why](folder_of(tmp_path, 30))
    choice = chosen(tmp_path, world_size, known_steps=30)
    assert choice.manifest == manifest.read(folder_of(tmp_path, 20))
    ((step, reason),) = choice.rejected
    assert step == 30
    assert why in reason


@pytest.mark.parametrize("damaged", [False, True])
def test_one_of_another_version_stops_the_run_and_nothing_is_touched(
    tmp_path: Path, damaged: bool
) -> None:
    """Damaged ones that are newer stay too: the version that can read them all is to judge."""
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    other = folder_of(tmp_path, 20 if damaged else 30) / NAME
    other.write_text(
        other.read_text()
        .replace('"format": 1', '"format": 2')
        .replace('"versions": {', '"versions": {"hpc_llm": "7.5"')
    )
    if damaged:
        flip(folder_of(tmp_path, 30) / FILES[0])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    error = choose(tmp_path, known_steps=30)
    assert isinstance(error, NoValidCheckpoint)
    assert "written by hpc_llm 7.5" in str(error)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_damage_that_one_rank_alone_sees_counts_for_all(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint(tmp_path, step)
    flip(
        folder_of(tmp_path, 20) / FILES[3]
    )  # of five files and four ranks, the fourth rank's only one
    choice = chosen(tmp_path, world_size=4)
    assert choice.manifest is not None
    assert choice.manifest.step == 10
    assert choice.rejected == [(20, f"{FILES[3]}: content does not match its SHA-256")]


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_every_file_is_looked_at_whatever_the_number_of_ranks(
    tmp_path: Path, world_size: int
) -> None:
    for name in FILES:
        flip(checkpoint(tmp_path / name, 10) / name)
        found = choose(tmp_path / name, world_size)
        assert str(found).endswith(f"step 10: {name}: content does not match its SHA-256")


def test_a_rejected_checkpoint_is_not_tried_again(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint(tmp_path, step)
    flip(folder_of(tmp_path, 20) / FILES[0])
    assert [step for step, _ in chosen(tmp_path).rejected] == [20]
    again = chosen(tmp_path, known_steps=20)
    assert again.rejected == []
    assert again.manifest is not None
    assert again.manifest.step == 10
    assert (folder_of(tmp_path, 20) / manifest.REJECTED).exists()


UNREADABLE = {"a file": FILES[3], "the manifest": NAME}


def away(
    monkeypatch: pytest.MonkeyPatch, *troubled: Path, times: float = math.inf
) -> Counter[Path]:
    """Whoever opens these files gets EIO, `times` times; nobody's patience lasts longer than a
    moment.

    How often each was refused.
    """
    plain_open = Path.open
    refused = Counter[Path]()
    ranks = threading.Lock()

    def open_path(path: Path, *words: Any, **more: Any) -> Any:
        with ranks:
            if path in troubled and refused[path] < times:
                refused[path] += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain_open(path, *words, **more)

    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.05)
    return refused


@pytest.mark.parametrize("name", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize(
    ("times", "taken"), [(1, 20), (math.inf, 10)], ids=["for a moment", "for good"]
)
def test_what_one_rank_cannot_read_is_asked_for_again_and_at_last_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, times: float, taken: int
) -> None:
    """Of five files and four ranks, the fourth's only one."""
    for step in (10, 20):
        checkpoint(tmp_path, step)
    refused = away(monkeypatch, folder_of(tmp_path, 20) / name, times=times)
    choice = chosen(tmp_path, world_size=4)
    assert choice.manifest is not None
    assert choice.manifest.step == taken
    assert refused.total() == 1 or taken == 10
    assert [step for step, _ in choice.rejected] == [20][: taken == 10]
    assert all("Input/output error" in why for _, why in choice.rejected)
    assert manifest.steps(tmp_path) == ([10, 20] if taken == 20 else [10])


@pytest.mark.parametrize("name", UNREADABLE.values(), ids=UNREADABLE)
def test_where_nothing_can_be_read_nothing_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A server that is away says nothing about what it holds, and what is damaged beside it may be
    so too.
    """
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    flip(folder_of(tmp_path, 30) / FILES[0])
    with monkeypatch.context() as patched:
        refused = away(patched, *(folder_of(tmp_path, step) / name for step in (10, 20)))
        ended = Ranks(4).run(lambda rank, gather: outcome(tmp_path, rank, gather))
    assert len(ended) == 4
    assert {type(error) for error in ended} == {OSError}
    assert {error.errno for error in ended} == {errno.EIO}
    num_readers = 1 if name in FILES else 4
    assert refused[folder_of(tmp_path, 20) / name] > num_readers
    assert refused[folder_of(tmp_path, 10) / name] == num_readers, (
        "patience is for all of them together"
    )
    choice = chosen(tmp_path)
    assert choice.manifest is not None
    assert (choice.manifest.step, [step for step, _ in choice.rejected]) == (20, [30])


def outcome(checkpoints: Path, rank: int, gather: Callable[[Any], list[Any]]) -> Any:
    try:
        return newest_valid(checkpoints, 20, rank, 4, gather)
    except OSError as error:
        return error


def test_a_save_that_was_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    (checkpoint(tmp_path, 20) / NAME).unlink()
    choice = chosen(tmp_path)
    assert choice.manifest is not None
    assert (choice.manifest.step, choice.rejected) == (10, [])


@pytest.mark.parametrize("folder", ["there", "not-there"])
def test_a_new_run_starts_from_zero(tmp_path: Path, folder: str) -> None:
    (tmp_path / "there").mkdir()
    assert chosen(tmp_path / folder) == Choice(None, [])


def test_a_run_that_ought_to_have_checkpoints_never_starts_from_zero(tmp_path: Path) -> None:
    for step in (10, 20):
        flip(checkpoint(tmp_path, step) / FILES[step // 10])
    found = choose(tmp_path)
    assert isinstance(found, NoValidCheckpoint)
    first, *reasons = str(found).splitlines()
    assert first == (
        f"no valid checkpoint in {tmp_path}, though step 20 was saved; bring one back, or choose "
        "another run.name to start anew"
    )
    assert reasons == [
        f"  step 20: {FILES[2]}: content does not match its SHA-256",
        f"  step 10: {FILES[1]}: content does not match its SHA-256",
    ]


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look at a listing comes at once, and is the last."""
    monkeypatch.setattr(choice_module, "LOOK_AGAIN_S", 1e-9)
    monkeypatch.setattr(choice_module, "_PAUSE_S", 0.0)


def test_what_the_ledger_knew_counts_where_nothing_is_left(tmp_path: Path, no_wait: None) -> None:
    found = choose(tmp_path, known_steps=500)
    assert isinstance(found, NoValidCheckpoint)
    assert "though step 500 was saved" in str(found)


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.integers(1, 4),
    story=st.dictionaries(st.integers(1, 9), st.sampled_from([None, None, *DAMAGE]), max_size=5),
)
def test_the_choice_is_always_the_newest_undamaged(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, story: dict[int, str | None]
) -> None:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    for step, why in story.items():
        folder = checkpoint(checkpoints, step)
        if why is not None:
            DAMAGE[why](folder)
    whole = [step for step, why in story.items() if why is None]
    found = choose(checkpoints, world_size)
    if whole:
        assert found.manifest.step == max(whole)
        assert [step for step, _ in found.rejected] == sorted(
            (s for s in story if s > max(whole)), reverse=True
        )
    elif story:
        assert isinstance(found, NoValidCheckpoint)
    else:
        assert found == Choice(None, [])


def test_a_listing_that_lacks_what_was_saved_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (100, 900):
        checkpoint(tmp_path, step)
    looks = [[100], [100], [100, 900]]  # what a client remembers, and then what is there
    monkeypatch.setattr(manifest, "steps", lambda _: looks.pop(0))
    monkeypatch.setattr(choice_module, "_PAUSE_S", 0.0)
    choice = chosen(tmp_path, known_steps=900)
    assert choice.manifest is not None
    assert (choice.manifest.step, choice.missing, looks) == (900, None, [])


def test_what_was_saved_and_is_gone_is_told(tmp_path: Path, no_wait: None) -> None:
    checkpoint(tmp_path, 100)
    choice = chosen(tmp_path, known_steps=900)
    assert choice.manifest is not None
    assert (choice.manifest.step, choice.missing) == (100, 900)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_the_older_one_is_gone_on_from_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(choice_module, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(choice_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(choice_module.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    checkpoint(tmp_path, 100)
    choice = chosen(tmp_path, known_steps=900)
    assert choice.manifest is not None
    assert (choice.manifest.step, choice.missing) == (100, 900)


def test_one_that_was_found_damaged_before_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, 100)
    manifest.reject(checkpoint(tmp_path, 900))
    monkeypatch.setattr(choice_module, "_listed_anew", lambda _: pytest.fail("looked again"))
    assert chosen(tmp_path, known_steps=900).missing is None
