from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.prepare import main


def test_prepare_sums_up_and_says_what_comes_next(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=files", f"data.source={corpus}", f"data.out={tmp_path / 'data'}", "model.vocab_size=512"]
    assert main([*words, "data.workers=1"]) == 0
    shown = capsys.readouterr()
    assert "prepared in" in shown.out
    assert "40: " in shown.out
    assert "nats per token" in shown.out
    assert "next: python -m hpc_llm.submit data=files" in shown.out
    assert "tokenising: 0.4 MB" in shown.err
    assert main(words) == 0
    assert "already prepared" in capsys.readouterr().out


def test_every_mistake_is_a_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=files", "data.source=/no/such", f"data.out={tmp_path / 'data'}"]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "prepare: data.source=/no/such: no such file or folder; give an existing one with data.source=PATH\n"
    )
    assert main(["data.vocabsize=3", "data.worker=2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
