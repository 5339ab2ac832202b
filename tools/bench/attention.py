"""ALiBi, computed in every way that a device has: forward and backward, and how far each is from the formula.

    python tools/bench/attention.py                                            # here, on the CPU
    python tools/bench/attention.py --device cuda --lengths 2048,8192,65536 --documents 1,16 --backends sdpa,folded,flex

What a backend cannot do (memory, a kernel that is not there) is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import record
import torch
from torch import Tensor

from hpc_llm.config.compose import compose
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends import make_backend
from hpc_llm.model.masks import past, together
from hpc_llm.model.positions import alibi_slopes

INTRODUCTION = """
# Attention with ALiBi

Forward and backward of one layer's attention with what its pass shares (masks, biases), median (least–greatest) of the
rounds after the first. The error is the root mean square against the formula in fp64 on the same rounded inputs, over
the first sequence; "rounding" is that of the exact result in the same precision.
"""


def step_s(name: str, config: ModelConfig, inputs: list[Tensor], documents: Tensor | None, rounds: int) -> list[float]:
    """Seconds of each round, the first with all that is compiled or allocated once."""
    q, k, v = inputs
    tokens = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int64, device=q.device)
    backend = make_backend(name, config, q.shape[2])
    constant = None if backend.constant is None else backend.constant.to(q.device, q.dtype)
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        backend.attend(q, k, v, backend.shared(constant, tokens, documents)).sum().backward()
        if q.is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return found[1:]


@torch.no_grad()
def errors(name: str, config: ModelConfig, inputs: list[Tensor], documents: Tensor | None) -> tuple[float, float]:
    """Root mean square of the backend's error, and of rounding the exact result."""
    q, k, v = (x[:1] for x in inputs)
    documents = None if documents is None else documents[:1]
    length = q.shape[2]
    backend = make_backend(name, config, length)
    constant = None if backend.constant is None else backend.constant.to(q.device, q.dtype)
    tokens = torch.zeros(1, length, dtype=torch.int64, device=q.device)
    found = backend.attend(q, k, v, backend.shared(constant, tokens, documents))[0].double()
    distance = torch.arange(length, device=q.device)[None] - torch.arange(length, device=q.device)[:, None]
    seen = past(length, None, q.device)
    if documents is not None:
        seen = seen & together(documents)[0, 0]
    off = rounding = 0.0
    for head, slope in enumerate(alibi_slopes(config.n_heads, config.alibi_bias_max).tolist()):
        scores = q[0, head].double() @ k[0, head].double().T / config.head_size**0.5 + slope * distance
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
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "attention.md")
    words = parser.parse_args()
    width = f"model.d_model={words.heads * words.head_size}"
    config = compose([width, f"model.n_heads={words.heads}"]).model
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
                    seconds = step_s(name, config, inputs, documents, words.rounds)
                    off, rounding = errors(name, config, inputs, documents)
                    row += [record.spread([1e3 * s for s in seconds], 1), f"{off:.2e}", f"{rounding:.2e}"]
                except (RuntimeError, InputError) as error:
                    row += [f"not possible: {str(error).splitlines()[0][:80]}", "–", "–"]
                rows.append(row)
                print(*row, sep="  ", flush=True)
    header = ("tokens × sequences", "documents", "backend", "ms", "error", "rounding")
    title = f"{words.heads} heads of {words.head_size}, {words.precision}, {words.device}"
    record.append(words.out, INTRODUCTION, title, record.table(header, rows), ["torch"])


if __name__ == "__main__":
    main()
