"""`prepare inspect=DIR` shows what a step trains on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hpc_llm import prepare
from hpc_llm.data import packs
from hpc_llm.data.manifest import facts
from hpc_llm.planning.plan import make_plan
from hpc_llm.runs import freeze
from tests.configs import make_config, planned
from tests.data.test_packing import documents
from tests.small_data import write_data

WORDS = (
    "model.vocab_size=512",
    "train.seq_len=32",
    "train.global_batch=4",
    "train.duration=20steps",
)


@pytest.fixture
def mixed(tmp_path: Path, prepared: Path) -> Path:
    """Two sources of made-up tokens, and a real tokenizer."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_data(folder, {"code": documents(1, 60, 30), "web": documents(2, 60, 30)})
    shutil.copy(prepared / "tokenizer.model", folder)
    return folder


def shown(capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    assert prepare.main(list(overrides)) == 0
    return capsys.readouterr().out.splitlines()


def test_rows_of_prepared_data_are_decoded(
    prepared: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(capsys, f"inspect={prepared}", "step=3", "rows=2", *WORDS)
    assert out[0] == "step 3 of 20: 4 files; sequences of 32 tokens"
    assert out[1].startswith("row 1: files, sample ")
    assert out[-1] == "… and 2 more rows: rows=N shows N"
    text = (
        "\n".join(path.read_text() for path in corpus.rglob("*.py"))
        .replace("\n", "⏎")
        .replace("\t", "→")
    )
    decoded = [
        line.partition(" tokens ")[2].rstrip("…") for line in out[1:-1] if " tokens " in line
    ]
    assert len(decoded) >= 2
    assert all(part.strip() in text for part in decoded)


def test_a_run_is_shown_as_it_was_frozen(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (
        "data=files",
        "data.source=/text",
        f"run.root={tmp_path}",
        "run.name=first",
        f"data.out={prepared}",
    )
    config = make_config(*WORDS, *overrides, "run.seed=5")
    layout = freeze.freeze(planned(config, make_plan(config, facts(prepared))))
    of_run = shown(capsys, f"inspect={layout.path}", "step=7", "rows=4")
    assert of_run == shown(capsys, f"inspect={prepared}", "step=7", "rows=4", *WORDS, "run.seed=5")
    assert of_run != shown(capsys, f"inspect={prepared}", "step=7", "rows=4", *WORDS)


def test_sources_and_epochs_are_named(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, f"inspect={mixed}", "step=20", *WORDS)
    assert out[0] == "step 20 of 20: 2 code, 2 web; sequences of 32 tokens"
    assert sum(line.startswith("row ") and ": web, sample" in line for line in out) == 2
    assert any("epoch 2" in line for line in out)


def test_packed_documents_stand_on_lines_of_their_own(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packs.ensure(mixed, 32)
    out = shown(capsys, f"inspect={mixed}", *WORDS, "data.packing=best_fit")
    sizes = [
        int(line.split()[0]) for line in out if line.endswith("masked") or " tokens " in line[:20]
    ]
    pieces = sum(" tokens " in line[:20] for line in out)
    assert sum(sizes) == 4 * 32 + pieces, "a document's last token is a target alone"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["step"], "step: a value is expected, for example step=100"),
        (["step=0"], "step=0: a whole number from 1 on is expected"),
        (["rows=many"], "rows=many: a whole number"),
        (["step=21"], "step=21: from 1 to 20, the steps of this run"),
        (
            ["train.seq_len=1000000", "model.max_seq_len=1000000"],
            r"train.seq_len=1000000: the train text",
        ),
    ],
)
def test_what_cannot_be_shown_is_said(
    prepared: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], problem: str
) -> None:
    assert prepare.main([f"inspect={prepared}", *WORDS, *overrides]) == 2
    assert problem in capsys.readouterr().err


def test_a_folder_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([f"inspect={tmp_path}"]) == 2
    assert (
        "neither a run directory (config.json) nor prepared data (manifest.json)"
        in capsys.readouterr().err
    )
