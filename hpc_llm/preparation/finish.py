"""The last stage, after all shards are made: rejects.jsonl, manifest.json, and the folder renamed
into place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.schema import DataConfig
from hpc_llm.data import manifest
from hpc_llm.data.shards import dtype_for
from hpc_llm.preparation import split
from hpc_llm.preparation.arrays import read_arrays
from hpc_llm.preparation.assemble import SPLITS, PlannedShard, assembled
from hpc_llm.preparation.chunks import Chunk
from hpc_llm.preparation.tokenise import Tokenised
from hpc_llm.storage.files import write_atomic
from hpc_llm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StageResults:
    """The results of the earlier stages, chunk by chunk."""

    chunks: Sequence[Chunk]
    verdicts: Sequence[np.ndarray]  # of each chunk's documents
    scans: Sequence[Path]
    parts: Sequence[Path]  # of tokenise.Tokenised
    shards: Mapping[Path, PlannedShard]  # by where assemble.assembled says what was made


def write_rejects(made: StageResults, out: Path) -> None:
    """All rejects in document order, chunk by chunk."""
    with out.open("wb") as file:
        for scanned, part in zip(made.scans, made.parts, strict=True):
            file.write(read_arrays(scanned, "rejects")["rejects"].tobytes())
            file.write(read_arrays(part, "rejects")["rejects"].tobytes())


def write_manifest(
    config: DataConfig, made: StageResults, tokenizer: Tokenizer, model: Path, out: Path
) -> None:
    """manifest.json. ValueError if a document is unaccounted for."""
    shards: dict[str, list[manifest.Shard]] = {name: [] for name in SPLITS}
    counts = {name: np.zeros(tokenizer.vocab_size, np.int64) for name in SPLITS}
    for path, planned in made.shards.items():
        shard, occurring = assembled(path)
        shards[planned.split].append(shard)
        counts[planned.split] += occurring
    facts = {name: _facts(name, made, shards) for name in config.source_names}
    tokens = {name: sum(shard.tokens for shard in own) for name, own in shards.items()}
    whole = manifest.Manifest(
        version=manifest.FORMAT_VERSION,
        dtype=dtype_for(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=padded_vocab(tokenizer.vocab_size),
        eos_id=tokenizer.eos_id,
        tokenizer=model.name,
        tokenizer_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        documents={
            key: sum(each.documents[key] for each in facts.values()) for key in manifest.COUNTS
        },
        tokens=tokens,
        bytes_per_token=sum(each.text_bytes for each in facts.values()) / sum(tokens.values()),
        unigram_entropy=_unigram_entropy(counts["train"], counts["heldout"]),
        recipe=manifest.recipe(config),
        library=tokenizer.library,
        sources=facts,
        shards=shards,
    )
    write_atomic(out, whole.to_json())


def num_documents(made: StageResults) -> tuple[int, int]:
    """Documents in, and rejects of both passes, over all sources."""
    rejected = sum(int((verdicts == split.REJECTED).sum()) for verdicts in made.verdicts)
    later = sum(int(read_arrays(part, "num_rejects")["num_rejects"]) for part in made.parts)
    return sum(
        int((verdicts != split.FILTERED).sum()) for verdicts in made.verdicts
    ), rejected + later


def _facts(
    source: str, made: StageResults, shards: Mapping[str, Sequence[manifest.Shard]]
) -> manifest.SourceFacts:
    verdicts = np.zeros(5, np.int64)
    rejects = 0
    lengths = np.zeros(64, np.int64)
    for chunk, verdict, path in zip(made.chunks, made.verdicts, made.parts, strict=True):
        if chunk.source == source:
            part = Tokenised.read(path)
            verdicts += np.bincount(verdict, minlength=5)
            rejects += int(part.num_rejects)
            lengths += np.bincount(np.log2(part.lengths).astype(np.int64), minlength=64)
    own = {
        name: [shard for shard in every if shard.source == source] for name, every in shards.items()
    }
    return manifest.SourceFacts(
        documents={
            "in": int(verdicts.sum() - verdicts[split.FILTERED]),
            "train": sum(shard.documents for shard in own["train"]),
            "heldout": sum(shard.documents for shard in own["heldout"]),
            "rejects": int(verdicts[split.REJECTED]) + rejects,
            "duplicates": int(verdicts[split.DUPLICATE]),
        },
        filtered=int(verdicts[split.FILTERED]),
        tokens={name: sum(shard.tokens for shard in every) for name, every in own.items()},
        text_bytes=sum(shard.text_bytes for every in own.values() for shard in every),
        lengths=np.trim_zeros(lengths, "b").tolist(),
    )


def _unigram_entropy(train: np.ndarray, heldout: np.ndarray) -> float:
    """Cross-entropy in nats per token of held-out counts [v] under add-one-smoothed training counts
    [v].

    The loss of a model that knows how often each token occurs but no context: what training must
    beat.
    """
    log_probability = np.log(train + 1) - math.log(int(train.sum()) + train.size)
    return float(-(heldout * log_probability).sum() / max(1, heldout.sum()))
