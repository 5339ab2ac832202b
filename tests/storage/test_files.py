"""Files and links that take another's place: the old content or the new, and nothing beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_llm.storage.files import (
    link_atomic,
    private_name,
    replacing,
    restrict_access,
    share_with_group,
    write_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_name_of_ones_own_names_the_machine_and_the_process() -> None:
    """Two machines that share a folder may have processes of the same id."""
    assert private_name("plan.json") == f".plan.json.{os.uname().nodename}.{os.getpid()}"


def test_until_all_is_written_a_reader_sees_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomic(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        (beside,) = set(names(tmp_path)) - {"plan.json"}
        assert beside.startswith(private_name("plan.json"))
    assert path.read_text() == "new"
    assert names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("error", [ValueError("no such text"), KeyboardInterrupt()])
def test_what_fails_half_way_changes_nothing_and_leaves_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "plan.json"
    write_atomic(path, "old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_a_link_takes_the_place_of_a_link_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "code"
    path.write_text("a file")
    for target in ("one", "two"):
        link_atomic(path, target)
        assert path.readlink() == Path(target)
    assert names(tmp_path) == ["code"]


@pytest.fixture
def kept_umask() -> Iterator[None]:
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@pytest.mark.parametrize(("parents", "expected"), [(0o2750, 0o2750), (0o750, 0o700)])
def test_where_a_groups_name_is_not_known_a_folder_has_its_parents_group_or_stays_private(
    tmp_path: Path, kept_umask: None, parents: int, expected: int
) -> None:
    restrict_access("of-a-directory-service")
    tmp_path.chmod(parents)
    folder = tmp_path / "run"
    folder.mkdir()
    share_with_group(folder, "of-a-directory-service")
    assert stat.S_IMODE(folder.stat().st_mode) == expected
    assert folder.stat().st_gid == tmp_path.stat().st_gid
