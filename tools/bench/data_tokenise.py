"""Tokenising: whole processes from their start to the manifest, against SentencePiece alone on the
same documents.

`python tools/bench/data_tokenise.py CORPUS MODEL` is the bare one: read every file, encode it
whole, keep the ids.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import record


def corpus(folder: Path, megabytes: float) -> int:
    """Library sources, each copy with a line of its own so that none is a duplicate; bytes
    written.
    """
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    texts = [
        path.read_bytes()
        for path in modules
        if path.stat().st_size > 200 and "test" not in path.parts
    ]
    written = copy = 0
    while written < megabytes * 1e6:
        (folder / str(copy)).mkdir(parents=True)
        for number, text in enumerate(texts):
            if written >= megabytes * 1e6:
                break
            whole = b"# copy %d\n" % copy + text
            try:
                whole.decode()
            except UnicodeDecodeError:
                continue
            (folder / str(copy) / f"{number}.py").write_bytes(whole)
            written += len(whole)
        copy += 1
    return written


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(record.ROOT)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    return time.perf_counter() - started


def prepare_words(source: Path, out: Path, workers: int, model: Path | None) -> list[str]:
    given = [f"data.tokenizer={model}"] if model else []
    more = ["data.suffixes=[.py]", "model.vocab_size=16384", "data.max_reject_fraction=1", *given]
    return ["-m", "hpc_llm.prepare", "data=files", f"data.source={source}", f"data.out={out}",
            f"data.workers={workers}", *more]  # fmt: skip


def lines(megabytes: float, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = corpus(folder / "text", megabytes) / 1e6
        trained = folder / "trained"
        seconds(prepare_words(folder / "text" / "0", trained, 1, None))
        model = folder / "tokenizer.model"
        shutil.copy(trained / "tokenizer.model", model)
        times: dict[str, list[float]] = {
            "SentencePiece alone": [],
            "prepare, 1 worker": [],
            "prepare, 2 workers": [],
        }
        for _ in range(rounds):
            times["SentencePiece alone"].append(
                seconds([__file__, str(folder / "text"), str(model)])
            )
            for workers, arm in ((1, "prepare, 1 worker"), (2, "prepare, 2 workers")):
                shutil.rmtree(folder / "out", ignore_errors=True)
                times[arm].append(
                    seconds(prepare_words(folder / "text", folder / "out", workers, model))
                )
    rates = {arm: [size / each for each in measured] for arm, measured in times.items()}
    bare, one, two = rates.values()
    per_core = [each / base for each, base in zip(one, bare, strict=True)]
    speedup = [each / base for each, base in zip(two, one, strict=True)]
    return [
        f"Tokenising {size:.0f} MB of Python sources, from process start to manifest:",
        "",
        *record.table(
            ["arm", "MB/s, median (least–greatest)"],
            [[a, record.spread(r, 2)] for a, r in rates.items()],
        ),
        "",
        f"- 1 worker ÷ SentencePiece alone ≥ 0.9: {record.spread(per_core, 3)}",
        f"- 2 workers ÷ 1 worker ≥ 1.8: {record.spread(speedup, 3)}",
    ]


def alone(text: Path, model: Path) -> None:
    import numpy as np
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    with tempfile.TemporaryFile() as out:
        for path in sorted(text.rglob("*.py")):
            np.array(processor.encode(path.read_text()), np.uint16).tofile(out)


if __name__ == "__main__":
    alone(Path(sys.argv[1]), Path(sys.argv[2]))
