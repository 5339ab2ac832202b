"""Rules on the configuration alone: what can be refused without looking at the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpc_llm.config import (
    cluster_checks,
    data_checks,
    model_checks,
    optim_checks,
    order_checks,
    ranges,
)
from hpc_llm.config.building import default_value
from hpc_llm.config.schema import HalvingConfig, RecoveryConfig, RunConfig, SearchConfig

VOCAB_MULTIPLE = 128  # embeddings padded to it: worth up to 4 MFU points (MPT-7B)
# `=` and `,`: lr=1e-4,seed=2 names a sweep's run
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=,-]{0,99}")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._=,-]+")
_OPEN_ADDRESS = re.compile(r"http://(?!127\.0\.0\.1[:/])|(?!https?://)\w+://")


def problems(config: RunConfig) -> list[str]:
    """Everything wrong with `config` as far as it alone can tell, one sentence each."""
    return [
        *ranges.problems(config),
        *_shapes(config),
        *_spelling(config),
        *_precision(config),
        *_without_effect(config),
        *cluster_checks.problems(config),
        *optim_checks.problems(config),
        *model_checks.problems(config),
        *data_checks.problems(config.data),
        *order_checks.problems(config),
    ]


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding for a tokenizer of `vocab_size` pieces."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _shapes(config: RunConfig) -> Iterator[str]:
    model = config.model
    train = config.train
    data = config.data
    if train.seq_len > model.max_seq_len:
        yield (
            f"train.seq_len={train.seq_len}: at most model.max_seq_len={model.max_seq_len} of "
            f"{model.name}; lower it or set model.max_seq_len={train.seq_len}"
        )
    if data.vocab_size is None:
        if data.tokenizer is None:
            yield (
                "data.vocab_size=null: the number of pieces to train, or data.tokenizer=PATH of a "
                "SentencePiece model"
            )
        return
    padded = padded_vocab(data.vocab_size)
    if not data.vocab_size <= model.vocab_size <= padded:
        yield (
            f"model.vocab_size={model.vocab_size}: {padded} is expected, "
            f"the tokenizer's data.vocab_size={data.vocab_size} padded to a multiple of "
            f"{VOCAB_MULTIPLE}"
        )


def _spelling(config: RunConfig) -> Iterator[str]:
    for key, name in (("run.name", config.run.name), ("run.sweep", config.run.sweep)):
        if name is None or _NAME.fullmatch(name):
            continue
        example = _NOT_IN_A_NAME.sub("-", name).strip("-.=,")[:100] or "my-run"
        yield (
            f"{key}={name!r}: up to 100 letters, digits, '.', '_', '=', ',' and '-', of which a "
            f"letter, a digit or '_' is the first; for example {example}"
        )
    if _OPEN_ADDRESS.match(" ".join(config.recovery.notify)):
        yield (
            f"recovery.notify={config.recovery.notify}: an https:// address, a command's "
            "words, or [$VARIABLE]"
        )


def _precision(config: RunConfig) -> Iterator[str]:
    if config.train.precision == "bf16" and config.train.zero_stage == 0:
        yield (
            "train.zero_stage=0: DeepSpeed cannot accumulate bf16 gradients in fp32 at stage 0; "
            "use train.zero_stage=1, 2 or 3, or train.precision=fp32"
        )


def _without_effect(config: RunConfig) -> Iterator[str]:
    recovery = config.recovery
    divergences = recovery.max_divergences
    stops = recovery.on_divergence == "stop"
    if stops and divergences != default_value(RecoveryConfig, "max_divergences"):
        yield (
            f"recovery.max_divergences={divergences}: has an effect with "
            "recovery.on_divergence=skip alone"
        )
    rungs = config.halving.rungs
    keep = config.halving.keep
    if not rungs and keep != default_value(HalvingConfig, "keep"):
        yield f"halving.keep={keep}: has an effect with halving.rungs alone"
    if rungs and config.run.sweep is None:
        yield "halving.rungs: has no effect on a single run; submit a sweep (-m)"
    trials = config.search.trials
    parallel = config.search.parallel
    if trials is None:
        if parallel != default_value(SearchConfig, "parallel"):
            yield f"search.parallel={parallel}: has an effect with search.trials alone"
        return
    if config.run.sweep is None:
        yield f"search.trials={trials}: has no effect on a single run; submit a sweep (-m)"
    if rungs:
        yield (
            "halving.rungs: has no effect on a search, which learns from whole runs; leave out "
            "one of the two"
        )
