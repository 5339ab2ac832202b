from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_data import data_config

from hpc_llm.config.errors import InputError
from hpc_llm.data import corpus


def names(**data: object) -> list[str]:
    return [document.name for document in corpus.documents(data_config(**data))]


def test_stdlib_is_this_python_without_tests_and_packages() -> None:
    found = names(name="stdlib")
    assert {"abc.py", "json/decoder.py", "pydoc_data/topics.py"} <= set(found)
    assert not [name for name in found if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert found == sorted(found)
    assert corpus.corpus_bytes(data_config(name="stdlib")) > 5_000_000


def test_folder_gives_the_files_of_its_suffixes_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.txt", "a/b/deep.md", "a/x.csv", "README"):
        (tmp_path / name).write_text("four")
    assert names(source=str(tmp_path)) == ["a/b/deep.md", "z.txt"]
    assert names(source=str(tmp_path), suffixes=[".csv"]) == ["a/x.csv"]
    assert corpus.corpus_bytes(data_config(source=str(tmp_path))) == 8


def test_one_file_is_a_corpus_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "book").write_text("text")
    assert names(source=str(tmp_path / "book")) == ["book"]


def test_missing_source_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.source=/no/such: no such file or folder"):
        names(source="/no/such")
    with pytest.raises(InputError, match=r"data\.source: missing"):
        names(source=None)


def test_folder_without_a_fitting_file_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(InputError, match=r"no file in it ends in \.arrow, \.json, .*data\.suffixes"):
        names(source=str(tmp_path))


def test_source_beside_stdlib_has_no_effect_and_says_so() -> None:
    with pytest.raises(InputError, match=r"data\.source=/x: has no effect"):
        names(name="stdlib", source="/x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"a\0b", "holds NUL"), (b"caf\xe9", "invalid UTF-8 at byte 3")],
)
def test_unusable_content_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(corpus.Rejected, match=reason):
        corpus.read(str(tmp_path / "a.txt"))


def test_what_is_no_file_is_rejected_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    assert names(source=str(tmp_path)) == ["broken.txt", "pipe.txt"]
    with pytest.raises(corpus.Rejected, match="not a regular file"):
        corpus.read(str(tmp_path / "pipe.txt"))
    with pytest.raises(corpus.Rejected, match="vanished"):
        corpus.read(str(tmp_path / "broken.txt"))
