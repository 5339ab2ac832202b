"""Documents larger than what may be in memory at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from hpc_llm.data.manifest import read_manifest
from tests.runs.machine import REPOSITORY

MB = 1 << 20


def peak_mb(overrides: list[str], out: Path) -> float:
    """Peak resident memory of a preparation by one process."""
    program = (
        "import resource, sys; from hpc_llm.prepare import main; status = main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "data=files",
        f"data.out={out}",
        "data.workers=1",
        *overrides,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) / 1024


@pytest.fixture
def brought(prepared: Path) -> list[str]:
    return [
        f"data.tokenizer={prepared / 'tokenizer.model'}",
        "data.vocab_size=512",
        "model.vocab_size=512",
    ]


def some_text(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"a small document, number {number}")
    return folder


def test_a_long_document_is_tokenised_whole_in_little_memory(
    brought: list[str], tmp_path: Path
) -> None:
    """12 MB on one line: its ids alone, as Python's integers, would be 150 MB."""
    small = some_text(tmp_path / "small")
    least = peak_mb([f"data.source={small}", *brought], tmp_path / "out-small")
    line = "the quick brown fox jumps over the lazy dog 0123456789 and so on " * (12 * MB // 65)
    (small / "long.txt").write_text(line)
    assert peak_mb([f"data.source={small}", *brought], tmp_path / "out") < least + 60
    manifest = read_manifest(tmp_path / "out")
    assert manifest.documents["in"] == 5
    assert manifest.documents["train"] + manifest.documents["heldout"] == 5
    assert manifest.sources["files"].text_bytes > len(line)


@pytest.mark.slow
def test_a_line_of_a_gigabyte_is_looked_at_in_little_memory(
    brought: list[str], tmp_path: Path
) -> None:
    """Its very last byte is no UTF-8, so that all of it must be read to reject it.

    As JSON it is too long to parse.
    """
    small = some_text(tmp_path / "small")
    least = peak_mb([f"data.source={small}", *brought], tmp_path / "out-small")
    block = b"one line, packed " * (MB // 17)
    for name, begins, ends in (
        ("text.txt.zst", b"", b"\xff"),
        ("record.jsonl.zst", b'{"text": "', b'"}'),
    ):
        with (
            (small / name).open("wb") as file,
            zstandard.ZstdCompressor().stream_writer(file) as packed,
        ):
            packed.write(begins)
            for _ in range(1024):
                packed.write(block)
            packed.write(ends)
    overrides = [f"data.source={small}", *brought, "data.max_reject_fraction=0.5"]
    # A record of up to 64 MB is held, twice while it grows.
    assert peak_mb(overrides, tmp_path / "out") < least + 250
    rejects = [
        json.loads(line)["reason"]
        for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert rejects[0].startswith("record of 1073")
    assert rejects[1].startswith("invalid UTF-8 at byte 1073")
