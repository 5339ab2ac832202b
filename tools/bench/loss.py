"""Cross-entropy of a large vocabulary: whole, in chunks, compiled; appended to benchmarks/loss.md.

    python tools/bench/loss.py                                                          # here, on the CPU
    python tools/bench/loss.py --device cuda --tokens 16384 --width 2048 --chunks 2048

Every way is a fresh process, forward and backward of the output matrix with its loss; ways take turns over rounds.
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
from hpc_llm.launch import allocator
from hpc_llm.model.loss import summed_loss
from hpc_llm.training import device as devices

INTRODUCTION = """
# Cross-entropy

The product with the output matrix and its loss, forward and backward: time, and how far memory grew beyond inputs,
weights and gradients (on a CPU the process's peak resident memory, on a GPU the allocator's peak). "whole" is torch's
cross-entropy of fp32 copies of all logits. Medians (least–greatest) over rounds, each way a process of its own.

Written by `tools/bench/loss.py`; sections are only ever added. A section of a GPU names it; none was at hand so far.
"""
STEPS = 3  # the first compiles and allocates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    chunks = [None, *map(int, arguments.chunks.split(","))]
    rows = []
    for vocabulary, precision in itertools.product(arguments.vocabularies.split(","), arguments.precisions.split(",")):
        ways = list(itertools.product((False, True), chunks))
        found: dict[tuple[bool, int | None], list[list[float]]] = {way: [] for way in ways}
        for number in range(arguments.rounds):
            for compiled, chunk in ways[number % len(ways) :] + ways[: number % len(ways)]:
                case = {"device": arguments.device, "vocabulary": int(vocabulary), "precision": precision}
                case |= {"tokens": arguments.tokens, "width": arguments.width, "chunk": chunk, "compiled": compiled}
                found[compiled, chunk].append(in_a_process(case))
        for (compiled, chunk), times in found.items():
            way = ("compiled, " if compiled else "") + ("whole" if chunk is None else f"chunks of {chunk}")
            step_ms, memory_gib, loss = zip(*times, strict=True)
            numbers = [record.spread(step_ms, 0), record.spread(memory_gib, 2), f"{loss[0]:.5f}"]
            rows.append([vocabulary, precision, way, *numbers])
            print(*rows[-1], sep=" | ", flush=True)
    lines = [
        f"{arguments.tokens:,} tokens, d_model {arguments.width}, {arguments.rounds} rounds.",
        "",
        *record.table(["vocabulary", "precision", "way", "ms", "memory GiB", "loss per token"], rows),
    ]
    record.append(arguments.out, INTRODUCTION, f"cross-entropy, {arguments.device}", lines, ["torch"])


def in_a_process(case: dict[str, object]) -> list[float]:
    malloc = allocator.environment(os.environ, allocator.library()) if case["device"] == "cpu" else {}
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **malloc})
    if done.returncode:
        sys.exit(f"{case}:\n{done.stderr}")
    result: list[float] = json.loads(done.stdout.split("@result")[1])
    return result


def measure(
    device: str, vocabulary: int, precision: str, tokens: int, width: int, chunk: int | None, compiled: bool
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
    x.grad, weight.grad = torch.zeros_like(x), torch.zeros_like(weight)
    if compiled:
        importlib.import_module("torch._inductor.compile_fx")  # its import is no part of a loss's memory
    before, times, loss = memory(place)["peak"], [], torch.zeros(())
    for _ in range(STEPS):
        begun = time.perf_counter()
        loss = summed_loss(x, weight, targets, config, chunk, compiled)
        (loss / tokens).backward()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    return [min(times[1:]), (memory(place)["peak"] - before) / 2**30, float(loss) / tokens]


if __name__ == "__main__":
    main()
