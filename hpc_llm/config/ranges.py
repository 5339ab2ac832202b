"""The range of every key that is a number, in the order of the schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.schema import RunConfig


@dataclass(frozen=True)
class Range:
    """Values that a key may have, and how a message describes them."""

    description: str
    holds: Callable[[Any], bool]


POSITIVE = Range("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("0 or more", lambda value: 0 <= value < math.inf)
BETWEEN = Range("between 0 and 1", lambda value: 0 < value < 1)
PORTION = Range("from 0 to 1", lambda value: 0 <= value <= 1)
TEN_SECONDS = Range("10 seconds or more", lambda value: 10 <= value < math.inf)


def are_betas(values: list[float]) -> bool:
    """Whether these can be the factors of two moving averages."""
    return len(values) == 2 and all(0 <= beta < 1 for beta in values)


RANGES = {
    "run.seed": Range("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    "run.max_gpu_hours": POSITIVE,
    "model.d_model": POSITIVE,
    "model.n_heads": POSITIVE,
    "model.n_layers": POSITIVE,
    "model.vocab_size": POSITIVE,
    "model.max_seq_len": POSITIVE,
    "model.n_kv_heads": POSITIVE,
    "model.alibi_bias_max": POSITIVE,
    "model.rope_theta": POSITIVE,
    "model.norm_eps": POSITIVE,
    "model.expansion_ratio": POSITIVE,
    "model.d_ffn": POSITIVE,
    "model.clip_qkv": POSITIVE,
    "model.sliding_window": POSITIVE,
    "model.logit_scale": POSITIVE,
    "model.logit_soft_cap": POSITIVE,
    "model.z_loss": NOT_NEGATIVE,
    "model.init_std": POSITIVE,
    "data.vocab_size": POSITIVE,
    "data.heldout_fraction": BETWEEN,
    "data.tokenizer_sample_mb": POSITIVE,
    "data.workers": POSITIVE,
    "data.max_reject_fraction": PORTION,
    "optim.lr": POSITIVE,
    "optim.betas": Range("two numbers in [0, 1)", are_betas),
    "optim.eps": POSITIVE,
    "optim.muon_lr": POSITIVE,
    "optim.muon_momentum": Range("in [0, 1)", lambda value: 0 <= value < 1),
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.grad_clip": NOT_NEGATIVE,
    "optim.min_lr_ratio": PORTION,
    "optim.decay_fraction": BETWEEN,
    "train.seq_len": POSITIVE,
    "train.global_batch": POSITIVE,
    "train.micro_batch": POSITIVE,
    "train.zero_stage": Range("0, 1, 2, 3 or auto", lambda value: value in (0, 1, 2, 3)),
    "train.loss_chunk": POSITIVE,
    "train.eval_batches": POSITIVE,
    "checkpoint.keep": POSITIVE,
    "cluster.nodes": POSITIVE,
    "cluster.gpus_per_node": POSITIVE,
    "cluster.spare_nodes": NOT_NEGATIVE,
    "cluster.gpu_memory_gib": POSITIVE,
    "cluster.gpu_peak_tflops": POSITIVE,
    "cluster.expected_mfu": Range("above 0, at most 1", lambda value: 0 < value <= 1),
    "cluster.cpus_per_gpu": POSITIVE,
    "cluster.threads_per_rank": POSITIVE,
    "cluster.time_min": POSITIVE,
    "cluster.signal_lead_s": Range(
        "seconds from 0 to 65535 (Slurm's limit)", lambda value: 0 <= value <= 65535
    ),
    "cluster.array_throttle": POSITIVE,
    "recovery.max_crashes": NOT_NEGATIVE,
    "recovery.max_hangs": NOT_NEGATIVE,
    "recovery.max_node_failures": NOT_NEGATIVE,
    "recovery.max_launch_failures": NOT_NEGATIVE,
    "recovery.max_out_of_memory": NOT_NEGATIVE,
    "recovery.max_divergences": NOT_NEGATIVE,
    "recovery.max_preemptions": NOT_NEGATIVE,
    "recovery.max_admin_cancels": NOT_NEGATIVE,
    "recovery.max_no_progress": NOT_NEGATIVE,
    "recovery.spike_threshold": POSITIVE,
    "recovery.hang_floor_s": TEN_SECONDS,
    "recovery.start_timeout_s": TEN_SECONDS,
    "recovery.node_exclusion_h": POSITIVE,
    "recovery.max_excluded_nodes": NOT_NEGATIVE,
    "halving.keep": Range("above 0 and below 1", lambda value: 0 < value < 1),
    "search.trials": POSITIVE,
    "search.parallel": POSITIVE,
    "trackers.tensorboard.every": POSITIVE,
}


def problems(config: RunConfig) -> Iterator[str]:
    """One sentence for every number outside its range."""
    for key, allowed in RANGES.items():
        value = _value_of(config, key)
        if value is None or value == "auto":
            continue
        if not allowed.holds(value):
            yield f"{key}={value}: {allowed.description} is expected"


def _value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted key; None where its section is null."""
    value: Any = config
    for part in key.split("."):
        if value is None:
            return None
        value = getattr(value, part)
    return value
