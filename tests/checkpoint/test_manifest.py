"""The manifest: what was written comes back, and every kind of damage is found and named."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.errors import ManifestError, OtherFormat
from hpc_llm.checkpoint.manifest import NAME, FileEntry, Manifest, folder_of
from tests.runs.machine import killed_at

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..", NAME, manifest.REJECTED))


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def manifest_of(step: int, files: list[FileEntry]) -> Manifest:
    return Manifest(
        step=step,
        tokens=step * 4096,
        attempt=1,
        world_size=2,
        zero_stage=1,
        precision="bf16",
        optimizer="fused_adam",
        versions={"torch": "2.10.0"},
        files=files,
    )


def checkpoint(checkpoints: Path, step: int = 7, **content: bytes) -> Path:
    """A whole checkpoint with these files, published."""
    folder = folder_of(checkpoints, step)
    folder.mkdir(parents=True)
    content = content or {"model.pt": b"weights" * 100, "optim.pt": b"states" * 100}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    manifest.publish(
        folder, manifest_of(step, [entry(name, data) for name, data in content.items()])
    )
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint for properties to damage, and its manifest as it was."""
    folder = checkpoint(tmp_path_factory.mktemp("checkpoints"))
    return folder, (folder / NAME).read_text()


def damage_of(folder: Path) -> list[str]:
    return manifest.verify(folder, manifest.read(folder).files)


@settings(max_examples=30, deadline=None)
@given(
    step=st.integers(0, 10**8 - 1),
    content=st.dictionaries(NAMES, st.binary(max_size=50), max_size=4),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_what_is_published_is_read_and_is_whole(
    tmp_path_factory: pytest.TempPathFactory,
    step: int,
    content: dict[str, bytes],
    versions: dict[str, str],
) -> None:
    folder = folder_of(tmp_path_factory.mktemp("checkpoints"), step)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    files = [entry(name, data) for name, data in content.items()]
    written = dataclasses.replace(manifest_of(step, files), versions=versions)
    manifest.publish(folder, written)
    assert manifest.read(folder) == written
    assert manifest.verify(folder, files) == []
    assert manifest.steps(folder.parent) == [step]


def test_steps_are_those_with_a_manifest_in_order(tmp_path: Path) -> None:
    assert manifest.steps(tmp_path) == []
    assert manifest.newest_step(tmp_path / "not-there") == 0
    for step in (500, 20, 1000):
        checkpoint(tmp_path, step)
    folder_of(tmp_path, 1500).mkdir()  # being written, or cut short
    assert manifest.steps(tmp_path) == [20, 500, 1000]
    assert manifest.newest_step(tmp_path) == 1000


@pytest.mark.parametrize(
    "name", ["step-00000007.bak", "step-7-copy", "step-", "best", "step-00000009.pt"]
)
def test_what_somebody_puts_beside_checkpoints_is_none(tmp_path: Path, name: str) -> None:
    shutil.copytree(checkpoint(tmp_path, 7), tmp_path / name)
    assert manifest.steps(tmp_path) == [7]


def test_killed_at_any_moment_of_publishing_there_is_a_whole_manifest_or_none(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path, 7)
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"weights")
    written = manifest_of(7, [entry("model.pt", b"weights")])
    number = 0
    while killed_at(number, tmp_path, lambda: manifest.publish(folder, written)):
        assert manifest.steps(tmp_path) == [] or manifest.read(folder) == written
        number += 1
    assert number >= 2  # at least the file and its renaming
    assert manifest.read(folder) == written


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.pt").unlink()
    assert damage_of(folder) == ["model.pt: No such file or directory"]


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.pt").write_bytes(b"weights" * 99)
    assert damage_of(folder) == ["model.pt: 693 bytes, 700 expected"]


@settings(max_examples=50, deadline=None)
@given(position=st.integers(0, 699), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(published: tuple[Path, str], position: int, bit: int) -> None:
    folder, text = published
    (folder / NAME).write_text(text)
    data = bytearray(b"weights" * 100)
    data[position] ^= 1 << bit
    (folder / "model.pt").write_bytes(data)
    assert damage_of(folder) == ["model.pt: content does not match its SHA-256"]


def test_a_folder_in_the_place_of_a_file_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.pt").unlink()
    (folder / "model.pt").mkdir()
    (problem,) = damage_of(folder)
    assert problem.startswith("model.pt: ")


def test_files_that_were_moved_and_linked_are_whole_and_a_pipe_is_not_waited_for(
    tmp_path: Path,
) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.pt").rename(tmp_path / "same-bytes")
    (folder / "model.pt").symlink_to(tmp_path / "same-bytes")
    (folder / "optim.pt").unlink()
    os.mkfifo(folder / "optim.pt")
    assert damage_of(folder) == [
        "optim.pt: is no file that a rank wrote",
    ]


def test_all_damage_is_reported_at_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, a=b"aa", b=b"bb", c=b"cc", d=b"dd")
    (folder / "a").unlink()
    (folder / "b").write_bytes(b"b")
    (folder / "c").write_bytes(b"cd")
    assert [problem.partition(":")[0] for problem in damage_of(folder)] == ["a", "b", "c"]


def test_files_that_no_manifest_names_are_nobodys_business(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "latest").touch()
    assert damage_of(folder) == []


def test_a_manifest_in_the_folder_of_another_step_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7).rename(folder_of(tmp_path, 8))
    with pytest.raises(ManifestError, match="manifest of step 7 in step-00000008"):
        manifest.read(folder_of(tmp_path, 8))


@pytest.mark.parametrize(
    "name", ["../../config.json", "/etc/passwd", "a/b", "../model.pt", "", ".", "..", "a/"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path)
    written = dataclasses.asdict(manifest.read(folder))
    written["files"][0]["name"] = name
    (folder / NAME).write_text(json.dumps(written))
    with pytest.raises(ManifestError, match="a file name leads out of the folder"):
        manifest.read(folder)


@pytest.mark.parametrize("written", ["2", "0", "1.5", '"2-ranges"'])
@pytest.mark.parametrize("versions", ['{"torch": "3"}', "[]", "null"])
def test_a_manifest_of_another_format_is_refused(
    tmp_path: Path, written: str, versions: str
) -> None:
    folder = checkpoint(tmp_path)
    fields = json.loads((folder / NAME).read_text())
    fields |= {"format": json.loads(written), "versions": json.loads(versions)}
    (folder / NAME).write_text(json.dumps(fields))
    with pytest.raises(OtherFormat, match=r"has format .*reads format 1"):
        manifest.read(folder)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "null",
            "[]",
            "17",
            '"text"',
            "{}",
            '{"files": 3}',
            '{"files": [3]}',
            '{"files": [{"name": "a"}]}',
        ),
        *('{"step": 7, "files": []}', "\xff\xfe", '{"files": [], "step": 7, "surplus": 1}'),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = checkpoint(tmp_path)
    (folder / NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match="manifest unreadable"):
        manifest.read(folder)


def test_keys_of_a_later_version_are_passed_over_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    expected = manifest.read(folder)
    fields = json.loads((folder / NAME).read_text())
    fields["ranges"] = {"of": "a later version"}
    fields["files"][0]["offset"] = 0
    (folder / NAME).write_text(json.dumps(fields))
    assert manifest.read(folder) == expected


def test_no_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / NAME).unlink()
    with pytest.raises(ManifestError, match="no manifest"):
        manifest.read(folder)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_manifest_cut_anywhere_is_refused(
    published: tuple[Path, str], data: st.DataObject
) -> None:
    folder, whole = published
    (folder / NAME).write_text(whole[: data.draw(st.integers(0, len(whole.rstrip()) - 1))])
    with pytest.raises(ManifestError, match="manifest unreadable"):
        manifest.read(folder)


@pytest.mark.parametrize(
    "words",
    [
        ('"bytes": 700', '"bytes": "700"'),
        ('"name": "model.pt"', '"name": 5'),
        ('"name": "model.pt"', '"name": null'),
        ('"step": 7', '"step": "7"'),
    ],
)
def test_values_of_a_wrong_type_make_no_checkpoint(tmp_path: Path, words: tuple[str, str]) -> None:
    folder = checkpoint(tmp_path)
    text = (folder / NAME).read_text()
    assert words[0] in text
    (folder / NAME).write_text(text.replace(*words))
    with contextlib.suppress(ManifestError):
        assert damage_of(folder) != []


def test_a_rejected_checkpoint_does_not_exist_any_more(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    text = (folder / NAME).read_text()
    manifest.reject(folder)
    assert manifest.steps(tmp_path) == []
    assert (folder / manifest.REJECTED).read_text() == text
    assert (folder / "model.pt").exists()


def test_verifying_gives_a_sign_of_life_with_every_chunk(tmp_path: Path) -> None:
    """Hours of it are no hang at the start, as long as it goes on."""
    folder = checkpoint(tmp_path)
    signs: list[None] = []
    assert manifest.verify(folder, manifest.read(folder).files, lambda: signs.append(None)) == []
    assert len(signs) == 2
