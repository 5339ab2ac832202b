"""A user's own conf/ with files that cannot be composed: one line with file and place, status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm import build, freeze, plan, prepare, submit

WHOLE = "name: mine\nlauncher: slurm\nnodes: 1\ngpus_per_node: 2\n"


def _written(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """conf/cluster/mine.yaml in the folder where commands are typed from here on."""
    path = tmp_path / "conf" / "cluster" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    "content, place",
    [
        (b"name: mine\nsetup: [a,\n", "line 3, column 1"),
        (b"name: mine\n\tnodes: 2\n", "line 2, column 1"),
        (b"name: mine\nnodes: 2\nnodes: 4\n", "line 3, column 1"),
        (b"name: mine: yours\n", "line 1, column 11"),
        (b"name: *nobody\n", "line 1, column 7"),
        (b"name: mine\n---\nnodes: 2\n", "line 2, column 1"),
        (b"name: mine\npartition: bl\xe4tter\n", "line 2, column 14"),
        ("name: mine\n".encode("utf-16"), "line 1, column 1"),
        (b"name: \x07mine\n", "character 7"),
    ],
)
def test_the_line_names_the_file_and_the_place(
    content: bytes,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _written(tmp_path, content, monkeypatch)
    assert plan.main(["+cluster=mine"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"plan: {path}, {place}: ")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "content, said",
    [
        (
            "defaults: [elsewhere]\n" + WHOLE,
            "In 'cluster/mine': Could not load 'cluster/elsewhere'",
        ),
        ("defaults: elsewhere\n" + WHOLE, "defaults must be a list"),
        ("defaults: [mine]\n" + WHOLE, "presets name each other in a circle"),
        (WHOLE + "partition: ${nobody.knows}\n", "cluster.partition: Interpolation key 'nobody"),
        (WHOLE + "partition: x${\n", "partition: no viable alternative"),
        ("- name\n- launcher\n", "cluster=['name', 'launcher']: a group of keys is expected"),
        (WHOLE + "setup: {a: b}\n", "cluster.setup={'a': 'b'}: a list"),
    ],
)
def test_yaml_that_means_nothing_here_is_told_in_one_line(
    content: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _written(tmp_path, content.encode(), monkeypatch)
    assert plan.main(["+cluster=mine"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("verb", [submit, prepare, freeze, build])
def test_every_verb_that_composes_says_the_same(
    verb: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _written(tmp_path, b"name: [\n", monkeypatch)
    assert verb.main(["+cluster=mine"]) == 2  # type: ignore[attr-defined]
    assert f"{path}, line 2, column 1: " in capsys.readouterr().err


def test_hydras_own_answers_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, b"name: [\n", monkeypatch)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", [])
    assert submit.main(["--cfg", "job", "+cluster=mine"]) == 2
    assert f"{path}, line 2, column 1: " in capsys.readouterr().err


def test_a_folder_or_a_link_to_nothing_is_no_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, b"", monkeypatch)
    path.with_name("folder.yaml").mkdir()
    path.with_name("lost.yaml").symlink_to("nowhere")
    assert plan.main(["+cluster=folder"]) == 2
    assert plan.main(["+cluster=lost"]) == 2
    shown = capsys.readouterr().err
    assert "cluster=folder: no such preset" in shown
    assert "cluster=lost: no such preset" in shown


def test_a_preset_that_another_one_names_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, ("defaults: [base/mine]\n" + WHOLE).encode(), monkeypatch)
    nested = path.parent / "base" / "mine.yaml"
    nested.parent.mkdir()
    nested.write_bytes(b"partition: bl\xe4tter\n")
    assert plan.main(["+cluster=mine"]) == 2
    assert capsys.readouterr().err.startswith(f"plan: {nested}, line 1, column 14: ")
