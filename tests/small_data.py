"""Configurations of which only the data matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from hpc_llm.config.building import build, to_dict
from hpc_llm.config.schema import DataConfig, RunConfig
from hpc_llm.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Shard, SourceFacts
from hpc_llm.data.mixture import Mixture
from hpc_llm.data.samples import Concatenated
from hpc_llm.data.shards import SHARD_TOKENS, ShardFile, ShardSet, dtype_for, shard_name
from hpc_llm.data.stream import Stream
from hpc_llm.planning.mixture import Phase, Source, stages


def run_config(**data: Any) -> RunConfig:
    """A RunConfig of which only `data` matters here."""
    recipe = {"lr": 1e-3, "global_batch": 4, "seq_len": 32, "duration": "10steps"}
    shape = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": 512, "max_seq_len": 64}
    config = build(
        RunConfig,
        {
            "run": {},
            "model": {"name": "tiny", **shape, "recipe": recipe},
            "data": {"name": "files", "vocab_size": 512},
            "optim": {"name": "torch_adam", "lr": 1e-3},
            "train": {"duration": "10steps", "seq_len": 32, "global_batch": 4},
            "checkpoint": {},
            "cluster": {"name": "local", "launcher": "local", "nodes": 1, "gpus_per_node": 1},
            "recovery": {},
            "trackers": {},
        },
    )
    plain = to_dict(dataclasses.replace(config.data, **data))
    return dataclasses.replace(config, data=build(DataConfig, plain))


def data_config(**data: Any) -> DataConfig:
    return run_config(**data).data


def one_source(shards: ShardSet, seed: int, seq_len: int, global_batch: int) -> Stream:
    """The stream of a run on `shards` alone, called corpus, documents concatenated."""
    samples = Concatenated(shards, seq_len)
    source = Source("corpus", samples.num_samples)
    parts = stages([Phase(0, {"corpus": 1.0})], [source], global_batch, steps=10**9)
    return Stream(Mixture(seed, [source], parts, global_batch), [samples], [(0, seq_len)])


EOS = 1  # ends every document of write_data


def write_shards(
    directory: Path,
    split: str,
    source: str,
    documents: list[list[int]],
    vocab_size: int = 128,
    shard_tokens: int = SHARD_TOKENS,
) -> list[Shard]:
    """Documents as they stand in shards of at most `shard_tokens`; a longer one has its own."""
    shards: list[Shard] = []
    file: ShardFile | None = None
    for document in documents:
        if file is not None and file.num_tokens + len(document) > shard_tokens:
            shards.append(file.close())
            file = None
        if file is None:
            name = shard_name(split, source, len(shards))
            file = ShardFile(directory, name, source, dtype_for(vocab_size))
        file.append(np.array(document), np.array([len(document)]), text_bytes=len(document))
    if file is not None:
        shards.append(file.close())
    return shards


def gathered(shards: ShardSet, sample_ids: np.ndarray, seq_len: int) -> np.ndarray:
    """Samples `sample_ids`: int64 [n, seq_len + 1]."""
    out = np.empty((len(sample_ids), seq_len + 1), np.int64)
    shards.gather_into(out, np.arange(len(sample_ids)), sample_ids, seq_len)
    return out


def write_data(
    directory: Path,
    documents: dict[str, list[list[int]]],
    shard_tokens: int = 10**6,
    heldout: dict[str, list[list[int]]] | None = None,
) -> Path:
    """Prepared data made of documents as they stand, by source.

    Held out are those of the first source, unless given.
    """
    heldout = {min(documents): documents[min(documents)]} if heldout is None else heldout
    shards: dict[str, list[Shard]] = {"train": [], "heldout": []}
    sources = {}
    for source in sorted(documents):
        tokens = {}
        counts = {}
        for split, texts in (("train", documents[source]), ("heldout", heldout.get(source, []))):
            shards[split] += write_shards(
                directory, split, source, texts, shard_tokens=shard_tokens
            )
            tokens[split] = sum(map(len, texts))
            counts[split] = len(texts)
        counts = {"in": sum(counts.values()), **counts, "rejects": 0, "duplicates": 0}
        sources[source] = SourceFacts(counts, 0, tokens, sum(tokens.values()), [])
    manifest = Manifest(
        version=FORMAT_VERSION,
        dtype="uint16",
        vocab_size=128,
        padded_vocab_size=128,
        eos_id=EOS,
        tokenizer="tokenizer.model",  # whoever decodes puts one there
        tokenizer_sha256="",
        documents={
            key: sum(each.documents[key] for each in sources.values())
            for key in sources[source].documents
        },
        tokens={split: sum(each.tokens[split] for each in sources.values()) for split in shards},
        bytes_per_token=1.0,
        unigram_entropy=1.0,
        recipe={},
        library="",
        sources=sources,
        shards=shards,
    )
    (directory / MANIFEST).write_text(manifest.to_json())
    return directory
