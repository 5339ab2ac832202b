"""Made-up tokens in the project's own format, and the stream of a run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from setting import manifest_of

from hpc_llm.data.manifest import MANIFEST, Manifest, Shard, read_manifest
from hpc_llm.data.mixture import Mixture
from hpc_llm.data.samples import Concatenated
from hpc_llm.data.shards import SHARD_TOKENS, ShardFile, ShardSet, dtype_for, shard_name
from hpc_llm.data.stream import Stream
from hpc_llm.planning.mixture import Phase, Source, stages

STEPS = 10**12
SEED = 17
VOCAB_SIZE = 2**16
DOCUMENT_TOKENS = 1000


def write(folder: Path, tokens: np.ndarray, parts: tuple[float, ...]) -> None:
    """`tokens` as sources of these parts of them, called a, b, …"""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    shards = {}
    ends = np.cumsum([0, *parts])
    for number, name in enumerate("abcdefgh"[: len(parts)]):
        first, end = (int(len(tokens) * part) for part in ends[number : number + 2])
        shards[name] = write_source(partial, name, tokens[first:end])
    (partial / MANIFEST).write_text(manifest_of(shards, "uint16", VOCAB_SIZE).to_json())
    partial.rename(folder)


def write_source(folder: Path, name: str, tokens: np.ndarray) -> list[Shard]:
    """Shards of documents of 1000 tokens; the last document is shorter."""
    shards = []
    most = SHARD_TOKENS // DOCUMENT_TOKENS * DOCUMENT_TOKENS
    for start in range(0, len(tokens), most):
        own = tokens[start : start + most]
        lengths = np.full(-(-len(own) // DOCUMENT_TOKENS), DOCUMENT_TOKENS)
        lengths[-1] = len(own) - DOCUMENT_TOKENS * (len(lengths) - 1)
        shard = shard_name("train", name, len(shards))
        file = ShardFile(folder, shard, name, dtype_for(VOCAB_SIZE))
        file.append(own, lengths, text_bytes=DOCUMENT_TOKENS * len(lengths))
        shards.append(file.close())
    return shards


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
