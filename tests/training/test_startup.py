"""What a rank imports before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_runs import run

pytestmark = pytest.mark.slow


def test_a_run_that_compiles_nothing_imports_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = run(tmp_path, "bare")
    assert done.status == 0, done.output
    imported = done.layout.rank_log(1, 0).read_text()
    assert "| deepspeed" in imported.replace("|   ", "| ")
    assert not [line for line in imported.splitlines() if line.endswith((" torch._dynamo", " sympy"))]
