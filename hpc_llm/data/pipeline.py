"""Corpus → shards: the story of `prepare`, top to bottom.

The bytes depend on the corpus and `manifest.recipe` alone, not on workers or file times. Work goes on in a folder
beside the target that is renamed into place at the end: prepared data is whole, or not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig, RunConfig
from hpc_llm.data import corpus, folders, manifest, tokenizer
from hpc_llm.data.shards import ShardWriter
from hpc_llm.data.split import heldout_digests, sample_bytes
from hpc_llm.data.workers import Encoded, Workers, encode, scan
from hpc_llm.planning.plan import DataFacts
from hpc_llm.storage.files import share_with_group, write_atomic

OnProgress = Callable[[str, int, int], None]  # stage, bytes of text done, bytes in all (0: not known)
_BATCH_BYTES = 1 << 20  # text per task of a worker: large against the cost of handing it over, small against memory


@dataclass(frozen=True)
class _Kept:
    """A document that passed the first look."""

    name: str
    path: str
    num_bytes: int
    digest: bytes  # SHA-256 of its content


def prepare(config: RunConfig, directory: Path, on_progress: OnProgress | None = None) -> DataFacts:
    """Tokenise the corpus of `config.data` into `directory`, or return at once what is prepared there already.

    Safe to call from several processes at once, and to kill: the next call begins anew. InputError for a corpus, a
    tokenizer or a folder that cannot be used.
    """
    report = on_progress or (lambda stage, done, total: None)
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 – resolve() would follow links
    if known := _prepared(config.data, directory):
        return known
    with folders.locked(directory, lambda: report("waiting for another preparation of this data", 0, 0)):
        if known := _prepared(config.data, directory):
            return known
        with folders.replacing(directory) as folder:
            share_with_group(folder, config.run.group)
            _build(config.data, folder, report)
    return manifest.facts(directory)


def _prepared(config: DataConfig, directory: Path) -> DataFacts | None:
    """Facts of a folder that holds what is asked for, None where there is none; InputError if it holds other things."""
    if not (directory / manifest.MANIFEST).exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"data.out={directory}: exists and is no prepared data; name a new or an empty folder")
        return None
    manifest.check_recipe(manifest.read_manifest(directory), config, directory)
    return manifest.facts(directory)


def _build(config: DataConfig, folder: Path, report: OnProgress) -> None:
    documents = corpus.documents(config)
    with Workers(config.workers) as workers:
        kept, rejects = _scan(documents, workers, report)
        _check_rejects(config, len(documents), rejects)
        heldout = heldout_digests([each.digest for each in kept], config.heldout_fraction)
        model = tokenizer.load(config) if config.tokenizer else _train(config, kept, heldout, report)
        write_atomic(folder / manifest.TOKENIZER, model)
        vocab_size = tokenizer.Tokenizer(model).vocab_size
        name = config.name
        with (
            ShardWriter(folder, "train", name, vocab_size) as train,
            ShardWriter(folder, "heldout", name, vocab_size) as held,
        ):
            for document, encoded in _encode(kept, folder / manifest.TOKENIZER, workers, report):
                if encoded.reject:
                    rejects[document.name] = encoded.reject
                else:
                    (held if document.digest in heldout else train).append(encoded.tokens, document.num_bytes)
    _check_rejects(config, len(documents), rejects)  # again: files may have vanished or changed meanwhile
    lines = [json.dumps({"path": name, "reason": rejects[name]}) + "\n" for name in sorted(rejects)]
    write_atomic(folder / manifest.REJECTS, "".join(lines))
    made = _manifest(config, model, len(documents), len(rejects), train, held)
    write_atomic(folder / manifest.MANIFEST, made.to_json())


def _scan(documents: list[corpus.Document], workers: Workers, report: OnProgress) -> tuple[list[_Kept], dict[str, str]]:
    """First look at every document: those to keep, and why others are rejected, by name."""
    kept: list[_Kept] = []
    rejects: dict[str, str] = {}
    done, total = 0, sum(document.num_bytes for document in documents)
    batches = list(_batches(documents))
    tasks = ([document.path for document in batch] for batch in batches)
    for batch, results in zip(batches, workers.map(scan, tasks), strict=True):
        for document, found in zip(batch, results, strict=True):
            if found.reject:
                rejects[document.name] = found.reject
            else:
                kept.append(_Kept(document.name, document.path, found.num_bytes, found.digest))
            done += document.num_bytes
        report("reading", done, total)
    return kept, rejects


def _check_rejects(config: DataConfig, num_documents: int, rejects: dict[str, str]) -> None:
    if len(rejects) > config.max_reject_fraction * num_documents or len(rejects) == num_documents:
        shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(rejects.items())[:3])
        raise InputError(
            f"data.max_reject_fraction={config.max_reject_fraction:g}: {len(rejects)} of {num_documents} documents are "
            f"unusable ({shown}{'; …' if len(rejects) > 3 else ''}); mend or remove them, or raise the fraction"
        )


def _train(config: DataConfig, kept: list[_Kept], heldout: set[bytes], report: OnProgress) -> bytes:
    if config.vocab_size is None:
        raise InputError(
            "data.vocab_size=null: how many pieces to train? give a number, or a model with data.tokenizer"
        )
    training = [each for each in kept if each.digest not in heldout]
    budget = int(config.tokenizer_sample_mb * 1e6)
    sample = sample_bytes([each.digest for each in training], [each.num_bytes for each in training], budget)
    report("training the tokenizer", 0, 0)
    return tokenizer.train(
        (_beginning(training[index].path, size) for index, size in sample.items()), config.vocab_size
    )


def _beginning(path: str, num_bytes: int) -> str:
    try:
        data, _ = corpus.read(path)
    except corpus.Rejected:
        return ""  # it vanished after the first look; the pass over all documents counts it
    return data[:num_bytes].decode("utf-8", errors="ignore")  # a character cut at the end


def _encode(kept: list[_Kept], model: Path, workers: Workers, report: OnProgress) -> Iterator[tuple[_Kept, Encoded]]:
    done, total = 0, sum(document.num_bytes for document in kept)
    batches = list(_batches(kept))
    tasks = ([(document.path, document.digest) for document in batch] for batch in batches)
    for batch, results in zip(batches, workers.map(partial(encode, str(model)), tasks), strict=True):
        yield from zip(batch, results, strict=True)
        done += sum(document.num_bytes for document in batch)
        report("tokenising", done, total)


def _batches(documents: list) -> Iterator[list]:
    """Runs of consecutive documents of about _BATCH_BYTES."""
    batch, num_bytes = [], 0
    for document in documents:
        batch.append(document)
        num_bytes += document.num_bytes
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _manifest(
    config: DataConfig, model: bytes, num_documents: int, num_rejects: int, train: ShardWriter, heldout: ShardWriter
) -> manifest.Manifest:
    pieces = tokenizer.Tokenizer(model)
    splits = {"train": train, "heldout": heldout}
    tokens = {name: sum(shard.tokens for shard in split.shards) for name, split in splits.items()}
    counts = {name: sum(shard.documents for shard in split.shards) for name, split in splits.items()}
    text_bytes = sum(shard.text_bytes for split in splits.values() for shard in split.shards)
    documents = {"in": num_documents, **counts, "rejects": num_rejects, "duplicates": 0}
    return manifest.Manifest(
        version=manifest.FORMAT_VERSION,
        dtype=train.dtype.name,
        vocab_size=pieces.vocab_size,
        padded_vocab_size=padded_vocab(pieces.vocab_size),
        eos_id=pieces.eos_id,
        tokenizer=manifest.TOKENIZER,
        tokenizer_sha256=hashlib.sha256(model).hexdigest(),
        documents=documents,
        tokens=tokens,
        bytes_per_token=text_bytes / sum(tokens.values()),
        unigram_entropy=_unigram_entropy(train.token_counts, heldout.token_counts),
        recipe=manifest.recipe(config),
        library=f"sentencepiece {sentencepiece.__version__}",
        sources={config.name: manifest.SourceFacts(documents, 0, tokens, text_bytes, [])},
        shards={name: split.shards for name, split in splits.items()},
    )


def _unigram_entropy(train: np.ndarray, heldout: np.ndarray) -> float:
    """Cross-entropy in nats per token of held-out counts [v] under add-one-smoothed training counts [v].

    The loss of a model that knows how often each token occurs and nothing of its context: what training must beat.
    """
    log_probability = np.log(train + 1) - math.log(int(train.sum()) + train.size)
    return float(-(heldout * log_probability).sum() / heldout.sum())
