"""A save is told to whoever wants to know, and what is leased stays while it is read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_llm.checkpoint import leases, manifest
from hpc_llm.checkpoint.errors import ManifestError
from hpc_llm.checkpoint.manifest import Manifest, folder_of, steps
from hpc_llm.checkpoint.retention import remove
from hpc_llm.checkpoint.store import CheckpointStore
from hpc_llm.runs.attempts import Fenced


def store(folder: Path, keep: int = 1, fence: Callable[[], None] = lambda: None) -> CheckpointStore:
    return CheckpointStore(folder, keep, None, fence)


def described(step: int) -> Manifest:
    return Manifest(step, step * 64, 1, 2, 1, "bf16", "torch_adam", {}, [])


def save(into: CheckpointStore, step: int) -> Path:
    folder = into.begin(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.pt").write_bytes(b"x")
    into.publish(described(step))
    return folder


def leased(checkpoints: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in checkpoints.glob("*.lease"))


# -- What is told


def test_hooks_hear_of_a_checkpoint_in_their_order_when_it_is_there(tmp_path: Path) -> None:
    calls: list[tuple[str, int, list[int]]] = []
    checkpoints = store(tmp_path)
    for name in ("first", "second"):
        checkpoints.on_published.append(
            lambda folder, saved, name=name: calls.append((name, saved.step, steps(tmp_path)))  # type: ignore[misc]
        )
    save(checkpoints, 10)
    assert calls == [("first", 10, [10]), ("second", 10, [10])]


def test_a_hook_that_fails_ends_nothing_and_the_next_is_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: Path, saved: Manifest) -> None:
        raise OSError("no bucket")

    told: list[Path] = []
    checkpoints = store(tmp_path)
    checkpoints.on_published += [fail, lambda folder, saved: told.append(folder)]
    folder = save(checkpoints, 10)
    assert told == [folder]
    assert steps(tmp_path) == [10]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "step 10 is saved" in record.message and "no bucket" in caplog.text


def test_behind_the_fence_nothing_is_removed_published_or_told(tmp_path: Path) -> None:
    save(store(tmp_path), 10)

    def fenced() -> None:
        raise Fenced("a newer attempt exists")

    told: list[Path] = []
    late = store(tmp_path, fence=fenced)
    late.on_published.append(lambda folder, saved: told.append(folder))
    with pytest.raises(Fenced):
        late.begin(10)
    folder_of(tmp_path, 20).mkdir()
    with pytest.raises(Fenced):
        late.publish(described(20))
    with pytest.raises(Fenced):
        late.prune()
    with pytest.raises(Fenced):
        late.discard(10)
    assert steps(tmp_path) == [10]
    assert told == []


def test_what_a_later_attempt_writes_is_not_pruned(tmp_path: Path) -> None:
    """The older one passed the fence a moment before the newer one came."""
    older, newer = (CheckpointStore(tmp_path, 1, None, lambda: None, number) for number in (1, 2))
    save(older, 200)
    being_written = newer.begin(150)
    older.prune()
    assert being_written.is_dir()
    newer.publish(described(150))
    for step in (210, 220):
        save(older, step)
    assert older.prune() == [200, 210]
    assert steps(tmp_path) == [150, 220]
    assert newer.prune() == [150]


@pytest.mark.parametrize("act", ["begin", "discard"])
def test_one_that_slept_behind_the_fence_removes_nothing_of_a_later_attempt(
    tmp_path: Path, act: str
) -> None:
    asked: list[int] = []

    def fence() -> None:
        """The newer attempt publishes while the older one, just let through, sleeps."""
        asked.append(1)
        if len(asked) > 1:
            raise Fenced("a newer attempt exists")
        save(newer, 900)

    newer = CheckpointStore(tmp_path, 1, None, lambda: None, 2)
    older = CheckpointStore(tmp_path, 1, None, fence, 1)
    with pytest.raises(Fenced):
        getattr(older, act)(900)
    assert steps(tmp_path) == [900]


def test_what_an_attempt_that_died_has_left_is_gone_before_the_next_save(tmp_path: Path) -> None:
    folder = save(store(tmp_path), 10)
    assert store(tmp_path).begin(10) == folder
    assert not folder.exists()


def test_a_run_comes_back_to_what_it_published(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep=3)
    for step in (10, 20):
        save(checkpoints, step)
    choice = checkpoints.choose(20, 0, 1, lambda value: [value])
    assert choice.manifest == manifest.read(folder_of(tmp_path, 20))


# -- Leases


def test_a_leased_checkpoint_stays_until_it_is_released(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20, 30):
        save(checkpoints, step)
    with checkpoints.lease(10, "export", seconds=600):
        assert checkpoints.prune() == [20]
        assert steps(tmp_path) == [10, 30]
        assert manifest.read(folder_of(tmp_path, 10)).step == 10
    assert leased(tmp_path) == []
    assert checkpoints.prune() == [10]


def test_each_reader_holds_it_for_itself(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    export = checkpoints.lease(10, "export", seconds=600)
    upload = checkpoints.lease(10, "upload", seconds=600)
    export.release()
    assert checkpoints.prune() == []
    upload.release()
    assert checkpoints.prune() == [10]


def test_a_lease_that_has_ended_holds_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    checkpoints.lease(10, "export", seconds=0.0)
    assert leased(tmp_path) == ["step-00000010"]
    assert checkpoints.prune() == [10]
    assert leased(tmp_path) == []


def test_a_holder_whose_lease_ends_takes_another(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    for seconds in (0.0, 600.0):
        checkpoints.lease(10, "export", seconds)
    (terms,) = leases.held(folder_of(tmp_path, 10))
    assert (terms.holder, terms.until > time.time() + 500) == ("export", True)
    assert checkpoints.prune() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"until": 9e9}'])
def test_a_file_that_is_no_lease_holds_nothing(tmp_path: Path, text: str) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    (tmp_path / "step-00000010.export.lease").write_text(text)
    assert checkpoints.prune() == [10]


@pytest.mark.parametrize("holder", ["", "a b", "../x", "a.b"])
def test_a_holder_that_would_not_make_a_file_name_is_refused(tmp_path: Path, holder: str) -> None:
    save(store(tmp_path), 10)
    with pytest.raises(ValueError, match="a holder of a lease"):
        store(tmp_path).lease(10, holder, seconds=600)


def test_what_is_gone_cannot_be_leased(tmp_path: Path) -> None:
    folder = save(store(tmp_path), 10)
    (folder / manifest.NAME).unlink()
    for step in (10, 20):
        with pytest.raises(ManifestError, match="no such checkpoint"):
            store(tmp_path).lease(step, "export", seconds=600)
    assert leased(tmp_path) == []


def test_leases_of_checkpoints_that_are_gone_are_swept_away_in_the_end(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 10)
    checkpoints.lease(10, "export", seconds=0.0)
    remove(folder_of(tmp_path, 10))
    save(checkpoints, 20)
    checkpoints.prune()
    assert leased(tmp_path) == []


READER = """
import sys
from pathlib import Path
from hpc_llm.checkpoint.store import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), 1, None, lambda: None)
lease = store.lease(10, "export", seconds=600)
print("held", flush=True)
if sys.stdin.readline():
    lease.release()
"""


@pytest.mark.parametrize("dies", [False, True])
def test_another_process_holds_it_for_the_one_that_prunes(tmp_path: Path, dies: bool) -> None:
    """One that dies holds it until its time is over."""
    checkpoints = store(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "held\n"
    assert checkpoints.prune() == []
    if dies:
        reader.kill()
    reader.communicate("" if dies else "done\n", timeout=60)
    assert checkpoints.prune() == ([] if dies else [10])
    if dies:
        (path,) = tmp_path.glob("*.lease")
        terms = json.loads(path.read_text())
        assert terms["pid"] == reader.pid
        path.write_text(json.dumps({**terms, "until": time.time() - 1}))
        assert checkpoints.prune() == [10]
        assert leased(tmp_path) == []


RACER = """
import sys
from pathlib import Path
from hpc_llm.checkpoint.errors import ManifestError
from hpc_llm.checkpoint.manifest import folder_of, folders
from hpc_llm.checkpoint.store import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), 1, None, lambda: None)
print("ready", flush=True)
granted = 0
while not (store.folder / "over").exists():
    for folder in folders(store.folder):
        step = int(folder.name.removeprefix("step-"))
        try:
            lease = store.lease(step, "export", seconds=600)
        except (ManifestError, FileNotFoundError):
            continue
        granted += 1
        assert (folder / "weights.pt").read_bytes() == b"x", folder
        lease.release()
print("granted", granted, flush=True)
"""


def test_a_lease_that_comes_while_its_checkpoint_is_pruned_is_kept_or_refused(
    tmp_path: Path,
) -> None:
    """Never granted and broken: another process leases, reads and releases as fast as it can."""
    checkpoints = store(tmp_path)
    reader = subprocess.Popen(
        [sys.executable, "-c", RACER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    try:
        for step in range(1, 31):
            save(checkpoints, step)
            checkpoints.prune()
    finally:
        (tmp_path / "over").touch()
        output, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert output.startswith("granted")
