"""Rules on the configuration alone: what can be refused without looking at the machine."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from hpc_llm.config import data_checks, model_checks, order_checks
from hpc_llm.config.building import default_of
from hpc_llm.config.schema import (
    ClusterConfig,
    HalvingConfig,
    RecoveryConfig,
    RunConfig,
    SearchConfig,
)

VOCAB_MULTIPLE = 128  # embeddings padded to it: worth up to 4 MFU points (MPT-7B)
_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._=,-]{0,99}"
)  # `=` and `,`: lr=1e-4,seed=2 names a sweep's run
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)

_POSITIVE: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 < value < math.inf,
    "a number above 0",
)
_NOT_NEGATIVE: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 <= value < math.inf,
    "0 or more",
)
_FRACTION: tuple[Callable[[Any], bool], str] = (lambda value: 0 < value < 1, "between 0 and 1")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run.seed": (lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1"),
    "run.max_gpu_hours": _POSITIVE,
    **dict.fromkeys(
        ("model.d_model", "model.n_heads", "model.n_layers", "model.vocab_size"), _POSITIVE
    ),
    **dict.fromkeys(
        ("model.max_seq_len", "model.expansion_ratio", "model.alibi_bias_max"), _POSITIVE
    ),
    **dict.fromkeys(
        ("model.clip_qkv", "model.init_std", "data.vocab_size", "data.workers"), _POSITIVE
    ),
    **dict.fromkeys(
        ("model.n_kv_heads", "model.d_ffn", "model.rope_theta", "model.norm_eps"), _POSITIVE
    ),
    **dict.fromkeys(
        ("model.sliding_window", "model.logit_scale", "model.logit_soft_cap"), _POSITIVE
    ),
    "model.z_loss": _NOT_NEGATIVE,
    **dict.fromkeys(("train.loss_chunk", "optim.muon_lr"), _POSITIVE),
    "optim.muon_momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    **dict.fromkeys(("data.heldout_fraction", "optim.decay_fraction"), _FRACTION),
    "data.tokenizer_sample_mb": _POSITIVE,
    "data.max_reject_fraction": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    **dict.fromkeys(("optim.lr", "optim.eps"), _POSITIVE),
    **dict.fromkeys(("optim.weight_decay", "optim.grad_clip"), _NOT_NEGATIVE),
    "optim.betas": (
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
        "two numbers in [0, 1)",
    ),
    "optim.min_lr_ratio": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    **dict.fromkeys(
        ("train.seq_len", "train.global_batch", "train.micro_batch", "train.eval_batches"),
        _POSITIVE,
    ),
    "train.zero_stage": (lambda value: value in (0, 1, 2, 3), "0, 1, 2, 3 or auto"),
    "checkpoint.keep": _POSITIVE,
    **dict.fromkeys(("cluster.nodes", "cluster.gpus_per_node", "cluster.cpus_per_gpu"), _POSITIVE),
    **dict.fromkeys(
        ("cluster.threads_per_rank", "cluster.time_min", "cluster.array_throttle"), _POSITIVE
    ),
    "cluster.spare_nodes": _NOT_NEGATIVE,
    **dict.fromkeys(("cluster.gpu_memory_gib", "cluster.gpu_peak_tflops"), _POSITIVE),
    "cluster.signal_lead_s": (
        lambda value: 0 <= value <= 65535,
        "seconds from 0 to 65535 (Slurm's limit)",
    ),
    "cluster.expected_mfu": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    **dict.fromkeys(
        ("recovery.max_crashes", "recovery.max_no_progress", "recovery.max_hangs"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("recovery.max_node_failures", "recovery.max_launch_failures"), _NOT_NEGATIVE),
    **dict.fromkeys(("recovery.max_out_of_memory", "recovery.max_divergences"), _NOT_NEGATIVE),
    **dict.fromkeys(("recovery.max_preemptions", "recovery.max_excluded_nodes"), _NOT_NEGATIVE),
    **dict.fromkeys(
        ("recovery.hang_floor_s", "recovery.start_timeout_s"),
        (lambda value: 10 <= value < math.inf, "10 seconds or more"),
    ),
    "recovery.node_exclusion_h": _POSITIVE,
    "search.trials": _POSITIVE,
    "search.parallel": _POSITIVE,
    "halving.keep": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "recovery.spike_threshold": _POSITIVE,
    "trackers.tensorboard.every": _POSITIVE,
}
_SLURM_ONLY = (
    "spare_nodes",
    *(
        "partition",
        "account",
        "qos",
        "constraint",
        "exclude",
        "reservation",
        "cpus_per_gpu",
        "mem",
        "time_min",
    ),
    *("setup", "wrapper", "sbatch", "gpu_request", "signal_lead_s"),
)


def problems(config: RunConfig) -> list[str]:
    """Everything wrong with `config` as far as it alone can tell, one sentence each."""
    return [
        *_ranges(config),
        *_shapes(config),
        *_words(config),
        *_combinations(config),
        *_without_effect(config),
        *model_checks.problems(config),
        *data_checks.problems(config.data),
        *order_checks.problems(config),
    ]


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding for a tokenizer of `vocab_size` pieces."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _ranges(config: RunConfig) -> Iterator[str]:
    for key, (allowed, description) in _RANGES.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part) if value is not None else None
        if value is not None and value != "auto" and not allowed(value):
            yield f"{key}={value}: {description} is expected"


def _shapes(config: RunConfig) -> Iterator[str]:
    model = config.model
    train = config.train
    data = config.data
    if train.seq_len > model.max_seq_len:
        yield (
            f"train.seq_len={train.seq_len}: at most model.max_seq_len={model.max_seq_len} of "
            f"{model.name}; lower it or set model.max_seq_len={train.seq_len}"
        )
    if data.vocab_size is None and data.tokenizer is None:
        yield (
            "data.vocab_size=null: the number of pieces to train, or data.tokenizer=PATH of a "
            "SentencePiece model"
        )
    if data.vocab_size is not None and not data.vocab_size <= model.vocab_size <= padded_vocab(
        data.vocab_size
    ):
        yield (
            f"model.vocab_size={model.vocab_size}: {padded_vocab(data.vocab_size)} is expected, "
            f"the tokenizer's data.vocab_size={data.vocab_size} padded to a multiple of "
            f"{VOCAB_MULTIPLE}"
        )


def _words(config: RunConfig) -> Iterator[str]:
    for key, name in (("run.name", config.run.name), ("run.sweep", config.run.sweep)):
        if name is None or _NAME.fullmatch(name):
            continue
        yield (
            f"{key}={name!r}: up to 100 letters, digits, '.', '_', '=', ',' and '-', of which a "
            "letter, a digit or '_' is the first; for example "
            f"{re.sub(r'[^A-Za-z0-9._=,-]+', '-', name).strip('-.=,')[:100] or 'my-run'}"
        )
    if re.match(
        r"http://(?!127\.0\.0\.1[:/])|(?!https?://)\w+://", " ".join(config.recovery.notify)
    ):
        yield (
            f"recovery.notify={config.recovery.notify}: an https:// address, a command's "
            "words, or [$VARIABLE]"
        )
    for variable in config.cluster.exports:
        if not _VARIABLE.fullmatch(variable):
            yield f"cluster.exports.{variable}: a variable's name has letters, digits and '_'"
        elif _SECRET.search(variable):
            yield (
                f"cluster.exports.{variable}: no secret is written to a file; export it in the "
                "shell you submit from"
            )
    dialect = config.cluster.gpu_request
    if config.cluster.mem is not None and not re.fullmatch(r"\d+([KMGT]B?)?", config.cluster.mem):
        yield (
            f"cluster.mem={config.cluster.mem!r}: as Slurm spells it, for example 480G; 0 is "
            "all of a node's"
        )
    if not re.fullmatch(r"none|gpus-per-node|gres(:[A-Za-z0-9_.-]+)?", dialect):
        yield (
            f"cluster.gpu_request={dialect!r}: gpus-per-node, gres, gres:TYPE (for example "
            "gres:a100) or none"
        )


def _combinations(config: RunConfig) -> Iterator[str]:
    stage = config.train.zero_stage
    optim = config.optim
    if config.train.precision == "bf16" and stage == 0:
        yield (
            "train.zero_stage=0: DeepSpeed cannot accumulate bf16 gradients in fp32 at stage 0; "
            "use train.zero_stage=1, 2 or 3, or train.precision=fp32"
        )
    if optim.offloaded and stage == 0:
        yield f"optim={optim.name}: offloading needs train.zero_stage=1, 2 or 3"
    if config.cluster.launcher == "local" and config.cluster.nodes != 1:
        yield (
            f"cluster.nodes={config.cluster.nodes}: 1 on cluster=local; ranks are "
            "cluster.gpus_per_node=N"
        )
    if config.test_only and config.cluster.launcher == "local":
        yield "test_only=true: asks Slurm, so it needs a cluster, for example +cluster=a100x64"
    if config.test_only and config.dry_run:
        yield "test_only=true: asks Slurm, and dry_run=true asks nobody; give one of them"
    if config.local and config.cluster.launcher == "slurm":
        yield (
            f"local=true: is for a run here, and cluster={config.cluster.name} is Slurm's; "
            "give one of them"
        )


def _without_effect(config: RunConfig) -> Iterator[str]:
    default = {field.name: field.default for field in dataclasses.fields(type(config.optim))}
    if config.optim.schedule != "wsd" and config.optim.decay_fraction != default["decay_fraction"]:
        yield (
            f"optim.decay_fraction={config.optim.decay_fraction}: has an effect with "
            "optim.schedule=wsd alone"
        )
    if config.optim.schedule == "constant" and config.optim.min_lr_ratio != default["min_lr_ratio"]:
        yield (
            f"optim.min_lr_ratio={config.optim.min_lr_ratio}: has no effect with "
            "optim.schedule=constant"
        )
    if config.optim.name.endswith("_lion") and config.optim.eps != default["eps"]:
        yield (
            f"optim.eps={config.optim.eps}: has no effect with optim={config.optim.name}, "
            "which divides by nothing"
        )
    if config.recovery.on_divergence == "stop":
        for name in ("max_divergences",):
            if (value := getattr(config.recovery, name)) != _default(RecoveryConfig, name):
                yield (
                    f"recovery.{name}={value}: has an effect with recovery.on_divergence=skip alone"
                )
    if not config.halving.rungs and config.halving.keep != _default(HalvingConfig, "keep"):
        yield f"halving.keep={config.halving.keep}: has an effect with halving.rungs alone"
    if config.halving.rungs and config.run.sweep is None:
        yield "halving.rungs: has no effect on a single run; submit a sweep (-m)"
    if config.search.trials is None and config.search.parallel != _default(
        SearchConfig, "parallel"
    ):
        yield f"search.parallel={config.search.parallel}: has an effect with search.trials alone"
    if config.search.trials is not None and config.run.sweep is None:
        yield (
            f"search.trials={config.search.trials}: has no effect on a single run; submit a "
            "sweep (-m)"
        )
    if config.search.trials is not None and config.halving.rungs:
        yield (
            "halving.rungs: has no effect on a search, which learns from whole runs; leave out "
            "one of the two"
        )
    if config.cluster.launcher == "local":
        if config.search.trials is not None:
            yield (
                "search.trials: has no effect on cluster=local, where no watchdog submits "
                "trials; choose a cluster"
            )
        if config.halving.rungs:
            yield (
                "halving.rungs: has no effect on cluster=local, where no watchdog stops runs; "
                "choose a Slurm cluster"
            )
        if config.recovery.successor:
            yield "recovery.successor=true: has no effect on cluster=local; choose a Slurm cluster"
        if config.recovery.notify:
            yield (
                "recovery.notify: has no effect on cluster=local, where no watchdog looks on; "
                "choose a Slurm cluster"
            )
        for name in _SLURM_ONLY:
            value = getattr(config.cluster, name)
            if value != _default(ClusterConfig, name):
                yield (
                    f"cluster.{name}={value}: has no effect on cluster=local; choose a Slurm "
                    "cluster"
                )


def _default(kind: Any, name: str) -> Any:
    return default_of(next(item for item in dataclasses.fields(kind) if item.name == name))
