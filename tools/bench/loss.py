"""Cross-entropy of a large vocabulary: whole, in chunks, compiled; appended to benchmarks/loss.md.

    python tools/bench/loss.py                                                          # here, on
    the CPU python tools/bench/loss.py --device cuda --tokens 16384 --width 2048 --chunks 2048

Every way is a fresh process, forward and backward of the output matrix with its loss; ways take
turns over rounds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import record
import torch
from setting import memory

from hpc_llm.config.compose import compose
from hpc_llm.model.loss import summed_loss
from hpc_llm.training import allocator
from hpc_llm.training import device as devices

INTRODUCTION = """
# Cross-entropy

The product with the output matrix and its loss, forward and backward: time, and how far memory grew beyond inputs,
weights and gradients (on a CPU the process's peak resident memory, on a GPU the allocator's peak). "whole" is torch's
cross-entropy of fp32 copies of all logits. Medians (least–greatest) over rounds, each way a process of its own.

Written by `tools/bench/loss.py`; sections are only ever added. A section of a GPU names it.
"""
STEPS = 3  # the first compiles and allocates
HEADER = ["vocabulary", "precision", "way", "ms", "memory GiB", "loss per token"]
Way = tuple[bool, int | None]  # compiled, and tokens of a chunk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--vocabularies", default="50432,128256")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512, help="d_model")
    parser.add_argument("--chunks", default="128,512", help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "loss.md")
    arguments = parser.parse_args()
    if arguments.one:
        print("@result", json.dumps(measure(**json.loads(arguments.one))))
        return
    section = record.Section(
        arguments.out, INTRODUCTION, f"cross-entropy, {arguments.device}", ["torch"]
    )
    head = f"{arguments.tokens:,} tokens, d_model {arguments.width}, {arguments.rounds} rounds."
    chunks = [None, *map(int, arguments.chunks.split(","))]
    ways = list(itertools.product((False, True), chunks))
    done: list[list[str]] = []
    for vocabulary, precision in itertools.product(
        arguments.vocabularies.split(","), arguments.precisions.split(",")
    ):
        found: dict[Way, list[list[float]]] = {way: [] for way in ways}
        failed: dict[Way, str] = {}
        for number in range(arguments.rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                if way in failed:
                    continue
                case = {
                    "device": arguments.device,
                    "vocabulary": int(vocabulary),
                    "precision": precision,
                }
                case |= {
                    "tokens": arguments.tokens,
                    "width": arguments.width,
                    "compiled": way[0],
                    "chunk": way[1],
                }
                try:
                    found[way].append(in_a_process(case))
                except CaseFailed as failure:
                    print(failure, flush=True)
                    failed[way] = str(failure).strip().splitlines()[-1][:200]
                rows = [
                    [vocabulary, precision, *row_of(way, found[way], failed.get(way))]
                    for way in ways
                ]
                section.write([head, "", *record.table(HEADER, done + rows)])
        for row in rows:
            print(*row, sep=" | ", flush=True)
        done += rows
        if len(failed) == len(ways):
            sys.exit("no way could be measured")


def row_of(way: Way, measured: list[list[float]], failure: str | None) -> list[str]:
    """A way's cells after vocabulary and precision, from what each round measured so far."""
    compiled, chunk = way
    name = ("compiled, " if compiled else "") + ("whole" if chunk is None else f"chunks of {chunk}")
    if failure is not None or not measured:
        return [name, f"not possible: {failure}" if failure else "–", "–", "–"]
    step_ms, memory_gib, loss = zip(*measured, strict=True)
    return [name, record.spread(step_ms, 1), record.spread(memory_gib, 2), f"{loss[0]:.5f}"]


class CaseFailed(Exception):
    """A case, and what its process said."""


def in_a_process(case: dict[str, object]) -> list[float]:
    malloc = (
        allocator.environment(os.environ, allocator.library()) if case["device"] == "cpu" else {}
    )
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **malloc})
    if done.returncode:
        raise CaseFailed(f"{case}:\n{done.stderr}")
    result: list[float] = json.loads(done.stdout.split("@result")[1])
    return result


def measure(
    device: str,
    vocabulary: int,
    precision: str,
    tokens: int,
    width: int,
    chunk: int | None,
    compiled: bool,
) -> list[float]:
    """[fastest step in ms, memory in GiB, loss per token]."""
    place = devices.choose_device(device, 0)
    devices.keep_memory(place)
    config = compose([f"model.d_model={width}", f"model.vocab_size={vocabulary}", "data.vocab_size=null",
                      "data.tokenizer=/none.model"]).model  # fmt: skip
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    x = torch.randn(tokens, width, device=place).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=place) / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device=place)
    x.grad = torch.zeros_like(x)
    weight.grad = torch.zeros_like(weight)
    if compiled:
        importlib.import_module(
            "torch._inductor.compile_fx"
        )  # its import is no part of a loss's memory
    before = taken(place)
    times = []
    loss = torch.zeros(())
    for _ in range(STEPS):
        begun = time.perf_counter()
        loss = summed_loss(x, weight, targets, config, chunk, compiled)
        (loss / tokens).backward()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    return [min(times[1:]), (memory(place)["peak"] - before) / 2**30, float(loss) / tokens]


def taken(place: torch.device) -> int:
    """Bytes before the first step. On a GPU the peak begins anew here: making the inputs took
    copies of them.
    """
    if place.type == "cpu":
        return memory(place)["peak"]
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


if __name__ == "__main__":
    main()
