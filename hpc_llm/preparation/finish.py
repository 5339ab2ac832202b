"""The last stage, after all shards are made: rejects.jsonl and manifest.json."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.schema import DataConfig
from hpc_llm.data import manifest
from hpc_llm.data.manifest import Manifest, Shard, SourceFacts
from hpc_llm.data.recipe import recipe_of
from hpc_llm.data.shards import dtype_for
from hpc_llm.preparation import split
from hpc_llm.preparation.arrays import read_arrays
from hpc_llm.preparation.assemble import SPLITS, PlannedShard, assembled
from hpc_llm.preparation.chunks import Chunk
from hpc_llm.preparation.tokenise import Tokenised
from hpc_llm.storage.files import write_atomic
from hpc_llm.text.tokenizer import Tokenizer

_LENGTH_BINS = 64  # powers of two


@dataclass(frozen=True)
class StageResults:
    """The results of the earlier stages, chunk by chunk."""

    chunks: Sequence[Chunk]
    verdicts: Sequence[np.ndarray]  # of each chunk's documents
    scans: Sequence[Path]
    parts: Sequence[Path]  # of tokenise.Tokenised
    shards: Mapping[Path, PlannedShard]  # by the file in which assemble.assembled describes it


def write_rejects(results: StageResults, out: Path) -> None:
    """All rejects in document order, chunk by chunk."""
    with out.open("wb") as file:
        for scanned, part in zip(results.scans, results.parts, strict=True):
            file.write(read_arrays(scanned, "rejects")["rejects"].tobytes())
            file.write(read_arrays(part, "rejects")["rejects"].tobytes())


def write_manifest(
    config: DataConfig, results: StageResults, tokenizer: Tokenizer, model: Path, out: Path
) -> None:
    """Write manifest.json. ValueError if a document is unaccounted for."""
    shards: dict[str, list[Shard]] = {}
    counts: dict[str, np.ndarray] = {}
    for name in SPLITS:
        shards[name] = []
        counts[name] = np.zeros(tokenizer.vocab_size, np.int64)
    for path, planned in results.shards.items():
        shard, occurrences = assembled(path)
        shards[planned.split].append(shard)
        counts[planned.split] += occurrences
    facts = {name: _facts(name, results, shards) for name in config.source_names}
    tokens = {name: _num_tokens(own) for name, own in shards.items()}
    text_bytes = sum(source.text_bytes for source in facts.values())
    made = Manifest(
        version=manifest.FORMAT_VERSION,
        dtype=dtype_for(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=padded_vocab(tokenizer.vocab_size),
        eos_id=tokenizer.eos_id,
        tokenizer=model.name,
        tokenizer_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        documents=_documents(facts.values()),
        tokens=tokens,
        bytes_per_token=text_bytes / sum(tokens.values()),
        unigram_entropy=_unigram_entropy(counts["train"], counts["heldout"]),
        recipe=recipe_of(config),
        library=tokenizer.library,
        sources=facts,
        shards=shards,
    )
    write_atomic(out, made.to_json())


def num_documents(results: StageResults) -> tuple[int, int]:
    """Documents in, and rejects of both passes, over all sources."""
    num_in = 0
    num_rejects = 0
    for verdicts, part in zip(results.verdicts, results.parts, strict=True):
        num_in += int((verdicts != split.FILTERED).sum())
        num_rejects += int((verdicts == split.REJECTED).sum())
        num_rejects += int(read_arrays(part, "num_rejects")["num_rejects"])
    return num_in, num_rejects


def _facts(
    source: str, results: StageResults, shards: Mapping[str, Sequence[Shard]]
) -> SourceFacts:
    verdicts = np.zeros(split.NUM_VERDICTS, np.int64)
    later_rejects = 0
    lengths = np.zeros(_LENGTH_BINS, np.int64)
    for chunk, own, path in zip(results.chunks, results.verdicts, results.parts, strict=True):
        if chunk.source == source:
            part = Tokenised.read(path)
            verdicts += np.bincount(own, minlength=split.NUM_VERDICTS)
            later_rejects += int(part.num_rejects)
            powers = np.log2(part.lengths).astype(np.int64)
            lengths += np.bincount(powers, minlength=_LENGTH_BINS)
    train = [shard for shard in shards["train"] if shard.source == source]
    heldout = [shard for shard in shards["heldout"] if shard.source == source]
    return SourceFacts(
        documents={
            "in": int(verdicts.sum() - verdicts[split.FILTERED]),
            "train": sum(shard.documents for shard in train),
            "heldout": sum(shard.documents for shard in heldout),
            "rejects": int(verdicts[split.REJECTED]) + later_rejects,
            "duplicates": int(verdicts[split.DUPLICATE]),
        },
        filtered=int(verdicts[split.FILTERED]),
        tokens={"train": _num_tokens(train), "heldout": _num_tokens(heldout)},
        text_bytes=sum(shard.text_bytes for shard in [*train, *heldout]),
        lengths=np.trim_zeros(lengths, "b").tolist(),
    )


def _documents(sources: Iterable[SourceFacts]) -> dict[str, int]:
    """Counts of documents over all sources."""
    documents = dict.fromkeys(manifest.COUNTS, 0)
    for source in sources:
        for key in manifest.COUNTS:
            documents[key] += source.documents[key]
    return documents


def _num_tokens(shards: Iterable[Shard]) -> int:
    return sum(shard.tokens for shard in shards)


def _unigram_entropy(train: np.ndarray, heldout: np.ndarray) -> float:
    """Cross-entropy of held-out counts under training counts, both [vocab_size]: nats per token.

    One is added to every training count. It is the loss of a model that knows how often each token
    occurs but no context: what training must beat.
    """
    log_probability = np.log(train + 1) - math.log(int(train.sum()) + train.size)
    return float(-(heldout * log_probability).sum() / max(1, heldout.sum()))
