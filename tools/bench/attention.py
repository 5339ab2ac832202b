"""Attention with ALiBi, or without positions, in every way that a device has: its time, and its
error.

    python tools/bench/attention.py                                            # here, on the CPU
    python tools/bench/attention.py --device cuda --lengths 2048,8192,65536 --documents 1,16
    --backends sdpa,folded,flex

What a backend cannot do (memory, a kernel that is not there) is a row that says so. `flex@hoisted`
is FlexAttention with ALiBi as a difference of two products, each of which a kernel can compute for
a row or a column at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import record
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpc_llm.config.compose import compose
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends import flex, make_backend
from hpc_llm.model.backends.protocol import Backend
from hpc_llm.model.positions import alibi_slopes

INTRODUCTION = """
# Attention with ALiBi

Forward and backward of one layer's attention, median (least–greatest) of the rounds after the first, and, apart from
it, what a pass makes once for all layers (masks, biases); in sections before 26 Nov 2026 that is part of the rounds.
The error is the root mean square against the formula in fp64 on the same rounded inputs, over the first sequence (at
most 256 queries of it); "rounding" is that of the exact result in the same precision. TFLOP/s count 14·heads·head·s²
a sequence, half of it where it is causal, whatever a backend leaves out of documents. `name@kernel` is a backend with
one of torch's kernels alone, `flex@hoisted` FlexAttention with ALiBi written otherwise (`tools/bench/attention.py`).

On a GPU a round is the mean of ten calls in a row, between two events; in the sections of 26 Nov 2026 it is one call
by the host's clock, its launch included.
"""
HEADER = (
    "tokens × sequences",
    "documents",
    "backend",
    "ms",
    "TFLOP/s",
    "ms shared",
    "error",
    "rounding",
)
CALLS = 10  # of a round on a GPU: a launch takes the host as long as a short kernel the device
# tokens; twice as many are minutes on the host, and more than a GPU's memory beside a copy
LONGEST_BIAS = 8192
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
KERNELS |= {"efficient": SDPBackend.EFFICIENT_ATTENTION}


def hoisted(slopes_H: Tensor) -> Callable[..., Tensor]:
    """flex.biased up to an ulp of slope · length, without a conversion to float for each score."""
    return lambda score, b, h, i, j: score + (slopes_H[h] * j - slopes_H[h] * i)


@dataclass(frozen=True)
class Way:
    """A backend with its constant on the device; `within` makes the context that it is called
    in.
    """

    backend: Backend
    constant: Any
    within: Callable[[], contextlib.AbstractContextManager[Any]]

    @classmethod
    def named(cls, name: str, config: ModelConfig, like: Tensor) -> Way:
        """InputError where there is none for inputs such as `like`."""
        name, _, variant = name.partition("@")
        length = like.shape[2]
        if name == "sdpa" and config.positions == "alibi" and length > LONGEST_BIAS:
            size = config.n_heads * length**2 * like.element_size() / 2**30
            raise InputError(f"a bias of {config.n_heads} · {length}² numbers, {size:.0f} GiB")
        backend = make_backend(name, config, length)
        constant = (
            None if backend.constant is None else backend.constant.to(like.device, like.dtype)
        )
        within: Callable[[], Any] = contextlib.nullcontext
        if variant == "hoisted":
            within = functools.partial(mock.patch.object, flex, "biased", hoisted)
        elif variant:
            within = functools.partial(sdpa_kernel, KERNELS[variant])
        return cls(backend, constant, within)


def step_s(
    way: Way, inputs: list[Tensor], documents: Tensor | None, rounds: int
) -> tuple[list[float], float]:
    """Seconds of a call in each round but the first, and those of what a pass shares, the second
    time it is made.
    """
    q, k, v = inputs
    tokens = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int64, device=q.device)
    with way.within():
        shared_s = [
            call_s(lambda: way.backend.shared(way.constant, tokens, documents), q.device)
            for _ in range(2)
        ]
        shared = way.backend.shared(way.constant, tokens, documents)
        gradient = torch.randn_like(q)

        def both() -> object:
            return torch.autograd.grad(way.backend.attend(q, k, v, shared), (q, k, v), gradient)

        found = [call_s(both, q.device) for _ in range(rounds + 1)]
    return found[1:], shared_s[-1]


def call_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: on a GPU the mean of several, one queued behind the other."""
    if device.type == "cpu":
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(CALLS):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000 / CALLS


@torch.no_grad()
def errors(
    way: Way, config: ModelConfig, inputs: list[Tensor], documents: Tensor | None
) -> tuple[float, float]:
    """Root mean square of the backend's error, and of rounding the exact result."""
    q, k, v = (x[:1] for x in inputs)
    documents = None if documents is None else documents[:1]
    length = q.shape[2]
    group = config.n_heads // config.kv_heads
    tokens = torch.zeros(1, length, dtype=torch.int64, device=q.device)
    rows = torch.linspace(0, length - 1, min(length, 256), device=q.device).long()
    with way.within():
        shared = way.backend.shared(way.constant, tokens, documents)
        found = way.backend.attend(q, k, v, shared)[0][:, rows].double()
    distance = torch.arange(length, device=q.device)[None] - rows[:, None]
    seen = distance <= 0
    if documents is not None:
        seen = seen & (documents[0][None] == documents[0][rows, None])
    off = rounding = 0.0
    slopes = alibi_slopes(config.n_heads, config.alibi_bias_max) * (config.positions == "alibi")
    for head, slope in enumerate(slopes.tolist()):
        scores = (
            q[0, head][rows].double() @ k[0, head // group].double().T / config.head_size**0.5
            + slope * distance
        )
        exact = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v[0, head // group].double()
        off += (found[head] - exact).square().mean().item() / config.n_heads
        rounding += (exact.to(q.dtype).double() - exact).square().mean().item() / config.n_heads
    return off**0.5, rounding**0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", default="256,512,1024,2048,4096", help="tokens of a sequence")
    parser.add_argument(
        "--tokens", type=int, default=4096, help="of all sequences together, at least one"
    )
    parser.add_argument("--documents", default="1,16", help="in a sequence, of equal length")
    parser.add_argument("--backends", default="sdpa,folded")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--positions", default="alibi", choices=["alibi", "none"])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, help="heads of keys and values; default as many")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "attention.md")
    words = parser.parse_args()
    kv_heads = words.kv_heads or words.heads
    shape_words = [f"model.d_model={words.heads * words.head_size}", f"model.n_heads={words.heads}"]
    config = compose(
        [*shape_words, f"model.n_kv_heads={kv_heads}", f"model.positions={words.positions}"]
    ).model
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[words.precision]
    heads = f"{words.heads} heads of {words.head_size}"
    heads += f", {kv_heads} of keys and values" if kv_heads != words.heads else ""
    title = f"{words.positions}, {heads}, {words.precision}, {words.device}"
    section = record.Section(words.out, INTRODUCTION, title, ["torch"])
    rows: list[list[object]] = []
    for length in map(int, words.lengths.split(",")):
        ways: dict[str, Way] = {}
        batch = max(1, words.tokens // length)
        for count in map(int, words.documents.split(",")):
            inputs = [
                torch.randn(
                    (batch, n, length, words.head_size), device=words.device, dtype=dtype
                ).requires_grad_()
                for n in (words.heads, kv_heads, kv_heads)
            ]
            numbers = torch.arange(length, device=words.device) * count // length
            documents = numbers.int().expand(batch, length) if count > 1 else None
            for name in words.backends.split(","):
                row: list[object] = [f"{length} × {batch}", count, name]
                try:
                    if name not in ways:
                        ways[name] = Way.named(name, config, inputs[0])
                    seconds, shared_s = step_s(ways[name], inputs, documents, words.rounds)
                    flops = 3.5 * 4 * words.heads * words.head_size * length**2 * batch / 2
                    row += [
                        record.spread([1e3 * s for s in seconds], 2),
                        f"{flops / median(seconds) / 1e12:.0f}",
                    ]
                    off, rounding = errors(ways[name], config, inputs, documents)
                    row += [f"{1e3 * shared_s:.2f}", f"{off:.2e}", f"{rounding:.2e}"]
                except (RuntimeError, InputError) as error:
                    row += [
                        f"not possible: {str(error).splitlines()[0][:80]}",
                        *["–"] * (len(HEADER) - len(row) - 1),
                    ]
                torch.compiler.reset()  # or a shape too many is no longer compiled
                rows.append(row)
                section.write(record.table(HEADER, rows))
                print(*row, sep="  ", flush=True)


if __name__ == "__main__":
    main()
