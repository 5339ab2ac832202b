"""Made-up tokens in the project's own format, and the stream of a run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from setting import manifest_of

from hpc_llm.data.manifest import MANIFEST, Manifest, read_manifest
from hpc_llm.data.mixture import Mixture
from hpc_llm.data.samples import Concatenated
from hpc_llm.data.shards import ShardSet, ShardWriter
from hpc_llm.data.stream import Stream
from hpc_llm.planning.mixture import Phase, Source, stages

STEPS = 10**12
SEED = 17


def write(folder: Path, tokens: np.ndarray, parts: tuple[float, ...]) -> None:
    """`tokens` as sources of these parts of them, called a, b, …; documents of 1000 tokens."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    writers = {}
    ends = np.cumsum([0, *parts])
    for number, name in enumerate("abcdefgh"[: len(parts)]):
        first, end = (int(len(tokens) * part) for part in ends[number : number + 2])
        with ShardWriter(partial, "train", name, 2**16) as writer:
            for start in range(first, end, 1000):
                writer.append(tokens[start : min(start + 1000, end)], 1000)
        writers[name] = writer.shards
    (partial / MANIFEST).write_text(manifest_of(writers, "uint16", 2**16).to_json())
    partial.rename(folder)


def stream(folder: Path, seq_len: int, batch: int, manifest: Manifest | None = None) -> Stream:
    """Sources in the proportions of their tokens."""
    manifest = manifest or read_manifest(folder)
    samples = [
        Concatenated(ShardSet(folder, "train", manifest, name), seq_len)
        for name in sorted(manifest.sources)
    ]
    sources = [
        Source(name, part.num_samples)
        for name, part in zip(sorted(manifest.sources), samples, strict=True)
    ]
    weights = {name: float(facts.tokens["train"]) for name, facts in manifest.sources.items()}
    parts = stages([Phase(0, weights)], sources, batch, STEPS)
    return Stream(Mixture(SEED, sources, parts, batch), list(samples), [(0, seq_len)])
