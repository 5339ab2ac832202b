"""Our loader beside a bare memory map and other libraries; appended to benchmarks/data.md.

`python tools/bench/data.py [--parts steady,resume,tokenise,training] [--tokens N] [--peers-python
P] [--streaming-python P] [--rounds N] [--out PAGE]`. What each arm does stands in data_arms.py.
Libraries live in an environment of their own, which sees this one's torch:

    python -m venv peers && echo "$(python -c 'import sysconfig;
    print(sysconfig.get_path("purelib"))')" \\
      > peers/lib/python3.*/site-packages/main.pth
    peers/bin/pip install -c <(echo torch==$(python -c 'import torch;
    print(torch.__version__.split("+")[0])')) \\
      litdata datasets megatron-core            # and mosaicml-streaming, whose pins need one of its
      own
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import data_tokenise
import numpy as np
import psutil
import record
from ours_data import STEPS
from setting import manifest_of
from turns import Runner, others

from hpc_llm.data.manifest import MANIFEST, Shard

HERE = Path(__file__).parent
PEERS = {
    "litdata": "litdata",
    "datasets": "datasets",
    "megatron": "megatron.core",
    "streaming": "streaming",
}
OURS = ("map", "map-take", "ours", "ours-mixed")
SPARSE_TOKENS = 10**10
# What ranks on CPUs set for themselves (training/device.py), for every arm: freed memory is kept,
# not mapped anew.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
INTRODUCTION = """
# Data

The same tokens, shuffled, as batches of seq_len + 1 tokens in torch tensors: our loader beside a bare memory map and
other libraries. `tools/bench/data_arms.py` says what each arm does and gives.

- Every arm is a process; they take turns, so that whatever else the machine does meets all of them alike. A turn's
  figure is tokens ÷ wall seconds; shown are the median over turns (least–greatest), ratios turn by turn. Between its
  turns an arm is stopped, with its workers.
- Nothing consumes the batches: what a loader does in threads of its own costs it here all the same.
- "others" is the share of all cores that other processes took during a turn, at worst.
- anonymous memory: the peak while batches are read, and what it was after importing torch (RssAnon).
- A library that is not installed is left out and named.

Written by `tools/bench/data.py`; sections are only ever added.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="steady,resume,tokenise,training")
    parser.add_argument("--tokens", type=float, default=200e6)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="sequences")
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of every arm, and repetitions elsewhere"
    )
    parser.add_argument("--turn-tokens", type=float, default=40e6)
    parser.add_argument(
        "--workers", default="0,2", help="worker processes of the libraries, each an arm"
    )
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--streaming-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--corpus-mb", type=float, default=100)
    parser.add_argument(
        "--folder", type=Path, help="where the tokens lie, and stay; default: a temporary folder"
    )
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "data.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for part in arguments.parts.split(","):
            title, lines = PARTS[part](folder, arguments)
            print("\n".join([f"## {title}", "", *lines, ""]), flush=True)
            record.append(
                arguments.out, INTRODUCTION, title, lines, ["torch", "numpy", "sentencepiece"]
            )


def steady(folder: Path, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    tokens = folder / "tokens.bin"
    if not tokens.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (30_000 * np.random.default_rng(0).random(int(arguments.tokens)) ** 3).astype("<u2").tofile(
            tokens
        )
    runners, left_out = start_arms(folder, arguments)
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    worst = 0.0
    count = max(1, int(arguments.turn_tokens) // (arguments.batch * arguments.seq_len))
    for number in range(arguments.rounds + 1):
        names = list(runners)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            runners[name].go_on()
            busy = others(psutil.Process(runners[name].process.pid))
            runners[name].say("go")
            seconds = runners[name].read("@turn")
            runners[name].pause()
            if number:  # the first warms up
                worst = max(worst, 0.0 if name not in OURS else busy())
                speeds[name].append(count * arguments.batch * arguments.seq_len / seconds / 1e6)
    for runner in runners.values():
        runner.go_on()
        runner.stop()
    memory = {name: runner.result for name, runner in runners.items()}
    rows = [
        [name, record.spread(found, 0), record.spread(over(found, speeds["map"]), 2),
         f"{memory[name]['peak_anonymous'] / 1e6:.0f}", f"{memory[name]['at_start'] / 1e6:.0f}"]
        for name, found in speeds.items()
    ]  # fmt: skip
    peers = {name: median(found) for name, found in speeds.items() if name not in OURS}
    grown = memory["ours"]["peak_anonymous"] - memory["map"]["peak_anonymous"]
    lines = [
        (
            f"{int(arguments.tokens):,} tokens, batches of {arguments.batch} × "
            f"{arguments.seq_len}; every arm with "
        )
        + " ".join(f"{name}={value}" for name, value in ALLOCATOR.items()),
        "",
        *record.table(["arm", "M tokens/s", "÷ map", "anonymous MB, peak", "after imports"], rows),
        "",
        *(f"- left out: {name} ({why})" for name, why in left_out.items()),
        f"- others: up to {worst:.0%} of the cores",
        f"- ours ÷ map ≥ 0.7: {record.spread(over(speeds['ours'], speeds['map']), 2)}",
        f"- ours ÷ map-take: {record.spread(over(speeds['ours'], speeds['map-take']), 2)}",
        f"- peak anonymous memory ≤ the map's + 20 MB: {grown / 1e6:+.1f} MB",
    ]
    if peers:
        best = max(peers, key=lambda name: peers[name])
        lines.append(
            f"- ours ÷ best other ({best}) ≥ 2: "
            f"{record.spread(over(speeds['ours'], speeds[best]), 2)}"
        )
    return "steady reading", lines


def start_arms(
    folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Every arm's process, ready; and which are left out, why."""
    found = {}
    left_out = {}
    arms = [(name, sys.executable, 0) for name in OURS]
    for name, module in PEERS.items():
        python = str(arguments.streaming_python if name == "streaming" else arguments.peers_python)
        if subprocess.run(
            [python, "-c", f"import {module}"], capture_output=True, check=False
        ).returncode:
            left_out[name] = f"not importable by {Path(python).name}"
            print(f"{name}: left out, {left_out[name]}", file=sys.stderr)
        else:
            arms += [(name, python, int(workers)) for workers in arguments.workers.split(",")]
    for name, python, workers in arms:
        case = {
            "arm": name,
            "folder": str(folder),
            "batch": arguments.batch,
            "seq_len": arguments.seq_len,
            "workers": workers,
            "turn_tokens": int(arguments.turn_tokens),
        }
        label = f"{name}, {workers} workers" if workers else name
        command = [python, "-W", "ignore", str(HERE / "data_arms.py"), json.dumps(case)]
        found[label] = Runner.of(command, {"PYTHONPATH": str(record.ROOT), **ALLOCATOR})
        found[label].read("@ready")
        found[label].pause()
    return found, left_out


def over(above: list[float], below: list[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def resume(folder: Path, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    sparse = folder / "sparse"
    sparse.mkdir(parents=True, exist_ok=True)
    with (sparse / "train-a-00000.bin").open("wb") as file:
        file.truncate(2 * SPARSE_TOKENS)
    shard = Shard(
        "train-a-00000.bin", "a", SPARSE_TOKENS, SPARSE_TOKENS // 1000, SPARSE_TOKENS, "", ""
    )
    (sparse / MANIFEST).write_text(manifest_of({"a": [shard]}, "uint16", 2**16).to_json())
    rows = []
    for step in (0, 10**3, 10**6, 10**9, STEPS - 1):
        words = [
            str(HERE / "data_resume.py"),
            str(sparse),
            str(arguments.batch),
            str(arguments.seq_len),
            str(step),
        ]
        found = [last_json([sys.executable, *words]) for _ in range(arguments.rounds)]
        rows.append([
            f"{step:,}", record.spread([each["ms"] for each in found], 1),
            record.spread([each["grown"] / 1e6 for each in found], 1),
            "yes" if all(each["same"] for each in found) else "NO",
        ])  # fmt: skip
    return "resume", [
        f"{SPARSE_TOKENS:,} tokens in a sparse file, batches of {arguments.batch} × "
        f"{arguments.seq_len}; a fresh process each time, from after its imports to the first "
        "batch.",
        "Aims: ≤ 10 ms, flat in the step; first batch ≤ 50 ms.",
        "",
        *record.table(["step", "ms", "resident MB more", "same bits from 4 ranks"], rows),
    ]  # fmt: skip


def last_json(command: list[str]) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(record.ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@result")]
    if not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(lines[-1].removeprefix("@result"))


def tokenise(folder: Path, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    return "tokenising", data_tokenise.lines(arguments.corpus_mb, arguments.rounds)


def training(folder: Path, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """A run of the default configuration: what its metrics say of waiting for data."""
    words = [
        "local=true",
        f"run.root={folder / 'runs'}",
        "run.name=wait",
        "train.duration=100steps",
    ]
    command = [sys.executable, "-m", "hpc_llm.submit", *words, "trackers=[]"]
    subprocess.run(
        command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(record.ROOT)}
    )
    rows = [
        json.loads(line)
        for line in (folder / "runs" / "wait" / "metrics.jsonl").read_text().splitlines()
    ]
    waits = [1000 * row["data_wait_s"] for row in rows if "data_wait_s" in row]
    steps = [
        1000 * row["tokens"] / row["step"] / row["tokens_per_second"]
        for row in rows
        if "data_wait_s" in row
    ]
    return "waiting for data in training", [
        "mpt-tiny on the standard library, 100 steps on this machine's CPUs; milliseconds a step.",
        "",
        *record.table(
            ["", "first step", "later, median (least–greatest)"],
            [
                ["data_wait_s", f"{waits[0]:.2f}", record.spread(waits[1:], 3)],
                ["whole step", f"{steps[0]:.0f}", record.spread(steps[1:], 0)],
            ],
        ),
        "",
        (
            "- share of the time after the first step that waited for data: "
            f"{sum(waits[1:]) / sum(steps[1:]):.3%}"
        ),
    ]


PARTS = {"steady": steady, "resume": resume, "tokenise": tokenise, "training": training}

if __name__ == "__main__":
    main()
