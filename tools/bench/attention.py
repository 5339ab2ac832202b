"""Attention with ALiBi, or without positions, in every way that a device has: its time, and its error.

    python tools/bench/attention.py                                            # here, on the CPU
    python tools/bench/attention.py --device cuda --lengths 2048,8192,65536 --documents 1,16 --backends sdpa,folded,flex

What a backend cannot do (memory, a kernel that is not there) is a row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import record
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpc_llm.config.compose import compose
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends import make_backend
from hpc_llm.model.backends.protocol import Backend
from hpc_llm.model.positions import alibi_slopes

INTRODUCTION = """
# Attention with ALiBi

Forward and backward of one layer's attention, median (least–greatest) of the rounds after the first, and, apart from
it, what a pass makes once for all layers (masks, biases); in sections before 26 Nov 2026 that is part of the rounds.
The error is the root mean square against the formula in fp64 on the same rounded inputs, over the first sequence (at
most 256 queries of it); "rounding" is that of the exact result in the same precision. TFLOP/s count 14·heads·head·s²
a sequence, half of it where it is causal, whatever a backend leaves out of documents. `name@kernel` is a backend with
one of torch's kernels alone.
"""


KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
KERNELS |= {"efficient": SDPBackend.EFFICIENT_ATTENTION}


def made(name: str, config: ModelConfig, like: Tensor) -> tuple[Backend, Any, Any]:
    """The backend, its constant on the device of `like`, and the context that it is called in."""
    name, _, kernel = name.partition("@")
    backend = make_backend(name, config, like.shape[2])
    constant = None if backend.constant is None else backend.constant.to(like.device, like.dtype)
    return backend, constant, sdpa_kernel(KERNELS[kernel]) if kernel else contextlib.nullcontext()


def step_s(
    name: str, config: ModelConfig, inputs: list[Tensor], documents: Tensor | None, rounds: int
) -> tuple[list[float], float]:
    """Seconds of each round but the first, and those of what a pass shares, the second time that it is made."""
    q, k, v = inputs
    tokens = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int64, device=q.device)
    backend, constant, context = made(name, config, q)
    now = functools.partial(_now, q.device)
    found, shared, shared_s = [], None, 0.0
    with context:
        for _ in range(2):
            begun = now()
            shared = backend.shared(constant, tokens, documents)
            shared_s = now() - begun
        gradient = torch.randn_like(v.expand(q.shape))
        for _ in range(rounds + 1):
            begun = now()
            torch.autograd.grad(backend.attend(q, k, v, shared), (q, k, v), gradient)
            found.append(now() - begun)
    return found[1:], shared_s


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def errors(name: str, config: ModelConfig, inputs: list[Tensor], documents: Tensor | None) -> tuple[float, float]:
    """Root mean square of the backend's error, and of rounding the exact result."""
    q, k, v = (x[:1] for x in inputs)
    documents = None if documents is None else documents[:1]
    length = q.shape[2]
    backend, constant, context = made(name, config, q)
    tokens = torch.zeros(1, length, dtype=torch.int64, device=q.device)
    rows = torch.linspace(0, length - 1, min(length, 256), device=q.device).long()
    with context:
        found = backend.attend(q, k, v, backend.shared(constant, tokens, documents))[0][:, rows].double()
    distance = torch.arange(length, device=q.device)[None] - rows[:, None]
    seen = distance <= 0
    if documents is not None:
        seen = seen & (documents[0][None] == documents[0][rows, None])
    off = rounding = 0.0
    slopes = alibi_slopes(config.n_heads, config.alibi_bias_max) * (config.positions == "alibi")
    for head, slope in enumerate(slopes.tolist()):
        scores = q[0, head][rows].double() @ k[0, head].double().T / config.head_size**0.5 + slope * distance
        exact = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v[0, head].double()
        off += (found[head] - exact).square().mean().item() / config.n_heads
        rounding += (exact.to(q.dtype).double() - exact).square().mean().item() / config.n_heads
    return off**0.5, rounding**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", default="256,512,1024,2048,4096", help="tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=4096, help="of all sequences together, at least one")
    parser.add_argument("--documents", default="1,16", help="in a sequence, of equal length")
    parser.add_argument("--backends", default="sdpa,folded")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--positions", default="alibi", choices=["alibi", "none"])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "attention.md")
    words = parser.parse_args()
    width = f"model.d_model={words.heads * words.head_size}"
    config = compose([width, f"model.n_heads={words.heads}", f"model.positions={words.positions}"]).model
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[words.precision]
    rows = []
    for length in map(int, words.lengths.split(",")):
        for count in map(int, words.documents.split(",")):
            batch = max(1, words.tokens // length)
            shape = (batch, words.heads, length, words.head_size)
            inputs = [torch.randn(shape, device=words.device, dtype=dtype).requires_grad_() for _ in range(3)]
            numbers = torch.arange(length, device=words.device) * count // length
            documents = numbers.int().expand(batch, length) if count > 1 else None
            for name in words.backends.split(","):
                row = [f"{length} × {batch}", count, name]
                try:
                    seconds, shared_s = step_s(name, config, inputs, documents, words.rounds)
                    flops = 3.5 * 4 * words.heads * words.head_size * length**2 * batch / 2
                    row += [record.spread([1e3 * s for s in seconds], 2), f"{flops / median(seconds) / 1e12:.0f}"]
                    off, rounding = errors(name, config, inputs, documents)
                    row += [f"{1e3 * shared_s:.2f}", f"{off:.2e}", f"{rounding:.2e}"]
                except (RuntimeError, InputError) as error:
                    row += [f"not possible: {str(error).splitlines()[0][:80]}", *["–"] * (8 - len(row) - 1)]
                torch.compiler.reset()  # or a shape too many is no longer compiled
                rows.append(row)
                print(*row, sep="  ", flush=True)
    header = ("tokens × sequences", "documents", "backend", "ms", "TFLOP/s", "ms shared", "error", "rounding")
    title = f"{words.positions}, {words.heads} heads of {words.head_size}, {words.precision}, {words.device}"
    record.append(words.out, INTRODUCTION, title, record.table(header, rows), ["torch"])


if __name__ == "__main__":
    main()
