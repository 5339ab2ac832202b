"""Configurations of which only the data matter."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpc_llm.config.schema import DataConfig, RunConfig, build, to_dict
from hpc_llm.data.mixture import Mixture
from hpc_llm.data.samples import Concatenated
from hpc_llm.data.shards import ShardSet
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
    plain = {**to_dict(config.data), **data}
    return dataclasses.replace(config, data=build(DataConfig, plain))


def data_config(**data: Any) -> DataConfig:
    return run_config(**data).data


def one_source(shards: ShardSet, seed: int, seq_len: int, global_batch: int) -> Stream:
    """The stream of a run on `shards` alone, called corpus, documents concatenated."""
    samples = Concatenated(shards, seq_len)
    source = Source("corpus", samples.num_samples)
    parts = stages([Phase(0, {"corpus": 1.0})], [source], global_batch, steps=10**9)
    return Stream(Mixture(seed, [source], parts, global_batch), [samples], [(0, seq_len)])
