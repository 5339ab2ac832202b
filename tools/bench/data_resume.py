"""The first batch of a fresh process, after imports: `python tools/bench/data_resume.py FOLDER
BATCH SEQ_LEN STEP`.

Prints milliseconds from nothing to the batch of optimizer step STEP (opening manifest and shards
with it), how much resident memory that took, and a digest of the batch put together from one rank
and from four.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from ours_data import stream

from hpc_llm.data.loader import Batches, Share


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def digest(folder: Path, batch: int, seq_len: int, step: int, world_size: int) -> str:
    """Of tokens and targets of all ranks in the order of the global batch."""
    tensors = []
    for rank in range(world_size):
        share = Share(rank, world_size, batch, batch // world_size)
        with Batches(stream(folder, seq_len, batch), share) as batches:
            tensors += batches.step(step)
    whole = [torch.cat(parts).contiguous() for parts in zip(*tensors, strict=True)]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in whole)).hexdigest()


def main() -> None:
    folder = Path(sys.argv[1])
    (batch, seq_len, step) = map(int, sys.argv[2:])
    torch.empty(1)
    before = resident_bytes()
    started = time.perf_counter()
    batches = Batches(stream(folder, seq_len, batch), Share(0, 1, batch, batch))
    batches.step(step)
    seconds = time.perf_counter() - started
    grown = resident_bytes() - before
    batches.close()
    digests = [digest(folder, batch, seq_len, step, world_size) for world_size in (1, 4)]
    print(
        "@result",
        json.dumps({"ms": 1000 * seconds, "grown": grown, "same": digests[0] == digests[1]}),
    )


if __name__ == "__main__":
    main()
