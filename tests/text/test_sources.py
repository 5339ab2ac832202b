from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.text.sources import InputFile, files, sources
from tests.small_data import data_config


def found(**data: object) -> list[InputFile]:
    return [file for source in sources(data_config(**data)) for file in files(source)]


def names(**data: object) -> list[str]:
    return [file.name for file in found(**data)]


def test_stdlib_is_this_python_without_tests_and_packages() -> None:
    listed = names(name="stdlib")
    assert {"abc.py", "json/decoder.py", "pydoc_data/topics.py"} <= set(listed)
    assert not [
        name
        for name in listed
        if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))
    ]
    assert listed == sorted(listed)
    assert sum(file.num_bytes for file in found(name="stdlib")) > 5_000_000


def test_folder_gives_the_files_of_its_suffixes_at_any_depth_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.txt", "a/b/deep.md.gz", "a/x.csv", "README", "a/rows.jsonl.zst"):
        (tmp_path / name).write_text("four")
    assert names(source=str(tmp_path)) == ["a/b/deep.md.gz", "a/rows.jsonl.zst", "z.txt"]
    assert names(source=str(tmp_path), suffixes=[".csv"]) == ["a/x.csv"]
    assert [file.kind for file in found(source=str(tmp_path))] == [".txt", ".jsonl", ".txt"]


def test_one_file_is_a_corpus_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "book").write_text("text")
    assert names(source=str(tmp_path / "book")) == ["book"]


def test_links_to_folders_are_followed_and_every_folder_is_read_once(tmp_path: Path) -> None:
    top = tmp_path / "top"
    elsewhere = tmp_path / "elsewhere"
    for name in (
        "top/own/a.txt",
        "elsewhere/web/b.txt",
        "elsewhere/web/deep/c.txt",
        "elsewhere/books/d.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    for link, target in {
        "top/again": top / "own",
        "top/web": elsewhere / "web",
        "top/own/web too": elsewhere / "web",
        "top/broken": tmp_path / "nowhere",
        "elsewhere/web/round": top,
        "elsewhere/web/on": elsewhere / "books",
    }.items():
        (tmp_path / link).symlink_to(target)
    assert names(source=str(top)) == ["own/a.txt", "web/b.txt", "web/deep/c.txt", "web/on/d.txt"]
    (tmp_path / "link").symlink_to(top)
    assert names(source=str(tmp_path / "link")) == names(source=str(top))


def test_several_sources_are_sorted_by_name_and_lie_below_data_source(tmp_path: Path) -> None:
    for name in ("web/a.txt", "books/b.txt", "elsewhere/c.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    given = {
        "web": {"path": "web"},
        "books": {"path": "books"},
        "code": {"path": str(tmp_path / "elsewhere")},
    }
    listed = found(source=str(tmp_path), sources=given)
    assert [(file.source, file.name) for file in listed] == [
        ("books", "b.txt"),
        ("code", "c.txt"),
        ("web", "a.txt"),
    ]


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source=/no/such: no such file or folder"):
        found(source="/no/such")
    with pytest.raises(InputError, match=r"data\.source: missing"):
        found(source=None)
    with pytest.raises(
        InputError,
        match=r"data\.sources\.c4\.path=/no/c4: no such file or folder; .*data\.sources\.c4",
    ):
        found(source="/no", sources={"c4": {"path": "c4"}})


def test_folder_without_a_fitting_file_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(
        InputError, match=r"no file in it ends in \.arrow, \.json, .*data\.suffixes"
    ):
        found(source=str(tmp_path))


def test_source_beside_stdlib_has_no_effect_and_says_so() -> None:
    with pytest.raises(InputError, match=r"data\.source=/x: has no effect"):
        found(name="stdlib", source="/x")


def test_of_a_saved_dataset_the_caches_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
        (folder / name).touch()
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    assert names(source=str(folder)) == ["data-00000-of-00001.arrow"]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(
        InputError, match=r"a saved DatasetDict of train; give one of them, for example .*/train"
    ):
        names(source=str(tmp_path))
