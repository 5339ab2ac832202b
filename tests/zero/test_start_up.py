"""What a rank imports before it trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpc_llm.training.allocator import library
from tests.chaos.local_runs import run

pytestmark = pytest.mark.slow


def test_a_run_that_compiles_nothing_imports_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = run(tmp_path, "bare", warm=False)
    assert done.status == 0, done.output
    imported = done.layout.rank_log(1, 0).read_text()
    assert "| deepspeed" in imported.replace("|   ", "| ")
    assert not [
        line for line in imported.splitlines() if line.endswith((" torch._dynamo", " sympy"))
    ]


LOOKED_AT = """
import gc
from hpc_llm import train
with train.kept_for_good():
    import hpc_llm.training.loop
print(gc.isenabled(), len(gc.get_objects()))
"""


def test_garbage_collections_do_not_look_at_what_was_imported() -> None:
    """DeepSpeed asks for six as it sets up, Python for one as it exits: a second of a rank's
    start.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOOKED_AT], capture_output=True, text=True, check=True
    )
    enabled, number = done.stdout.splitlines()[-1].split()
    assert enabled == "True"
    assert int(number) < 1000  # of some 200,000


def test_a_rank_on_a_cpu_has_tcmalloc_or_says_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    done = run(tmp_path, "bare", warm=False)
    assert done.status == 0, done.output
    assert ("without tcmalloc" in done.layout.rank_log(1, 0).read_text()) is (library() is None)


def test_what_one_run_compiled_the_next_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)

    def kernels() -> set[Path]:
        return {
            path
            for ending in ("so", "cpp")
            for path in (tmp_path / ".compiled").rglob(f"*.{ending}")
        }

    first = run(tmp_path, "first", "train.compile=true")
    assert first.status == 0, first.output
    made = kernels()
    assert made
    second = run(tmp_path, "second", "train.compile=true", "run.seed=3")
    assert second.status == 0, second.output
    assert kernels() == made
