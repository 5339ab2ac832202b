"""What is known of prepared data without opening it, with the standard library alone.

<directory>/
  train-<source>-00000.bin       tokens, little endian, no header
  train-<source>-00000.idx       uint64: start of each document, and the end
  heldout-<source>-00000.bin     the same, of held-out documents
  tokenizer.model                a SentencePiece model, or tokenizer.json as it was brought
  rejects.jsonl                  {"source", "file", "offset", "reason"} a line
  manifest.json                  this file's Manifest; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.config import building, hints
from hpc_llm.config.errors import InputError
from hpc_llm.planning.data_facts import DataFacts

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
COUNTS = ("in", "train", "heldout", "rejects", "duplicates")  # of documents
REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class Shard:
    """One .bin file and the index beside it; hashes are SHA-256 in hexadecimal."""

    file: str
    source: str
    tokens: int  # end-of-text tokens included
    documents: int
    text_bytes: int  # UTF-8 bytes of the documents
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class SourceFacts:
    """What became of the documents of one source."""

    documents: dict[str, int]  # in = train + heldout + rejects + duplicates
    filtered: int  # documents that the source's own filters left out; they are not in
    tokens: dict[str, int]  # train, heldout
    text_bytes: int  # UTF-8 bytes of both splits
    # [i]: documents of 2^i to 2^(i+1) − 1 tokens, end of text included, both splits
    lengths: list[int]


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a folder of shards."""

    version: int
    dtype: str  # uint16 or uint32
    vocab_size: int  # pieces of the tokenizer
    padded_vocab_size: int  # rows of the embedding: a multiple of 128
    eos_id: int  # ends every document
    tokenizer: str  # its file
    tokenizer_sha256: str
    documents: dict[str, int]  # in = train + heldout + rejects + duplicates
    tokens: dict[str, int]  # train, heldout
    bytes_per_token: float  # UTF-8 bytes ÷ tokens, both splits
    unigram_entropy: float  # nats per token, see DataFacts
    recipe: dict[str, Any]  # the settings that made these bytes
    library: str  # of the tokenizer, with its version
    sources: dict[str, SourceFacts]  # add up to `documents` and `tokens`
    # train, heldout; those of a source in a row, sources sorted by name
    shards: dict[str, list[Shard]]

    def __post_init__(self) -> None:
        """ValueError unless every document is accounted for and the counts of the shards add up."""
        _check_documents(self.documents)
        for source in self.sources.values():
            _check_documents(source.documents)
        for key, count in self.documents.items():
            if count != sum(source.documents[key] for source in self.sources.values()):
                raise ValueError(f"documents of the sources do not add up to {count} {key}")
        for split in self.shards:
            if self.tokens[split] != sum(source.tokens[split] for source in self.sources.values()):
                raise ValueError(f"tokens of the sources do not add up to those of {split}")
            for name, source in self.sources.items():
                tokens = 0
                documents = 0
                for shard in self.shards_of(split, name):
                    tokens += shard.tokens
                    documents += shard.documents
                if source.tokens[split] != tokens:
                    raise ValueError(f"tokens of {split} of {name} do not add up")
                if source.documents[split] != documents:
                    raise ValueError(f"documents of {split} of {name} do not add up")
        if self.dtype not in ("uint16", "uint32"):
            raise ValueError(f"dtype {self.dtype} is not uint16 or uint32")

    def shards_of(self, split: str, source: str | None = None) -> list[Shard]:
        """The shards of `split`, of one source or (None) of all."""
        if source is None:
            return list(self.shards[split])
        return [shard for shard in self.shards[split] if shard.source == source]

    @property
    def digests(self) -> dict[str, str]:
        """Of each source, one of all that its tokens are and mean.

        Two sources with equal digests train the same.
        """
        return {name: self._digest(name) for name in self.sources}

    def _digest(self, source: str) -> str:
        hashes = []
        for split in sorted(self.shards):
            for shard in self.shards_of(split, source):
                hashes.append([split, shard.sha256, shard.index_sha256])
        identity = [self.tokenizer_sha256, self.vocab_size, self.eos_id, self.dtype, hashes]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The reverse of dataclasses.asdict. ValueError, KeyError or TypeError where it is none.

        Keys that this version does not know are passed over.
        """
        sources = {}
        for name, entry in values["sources"].items():
            sources[name] = SourceFacts(**building.known(SourceFacts, entry))
        shards = {}
        for split, entries in values["shards"].items():
            shards[split] = [Shard(**building.known(Shard, entry)) for entry in entries]
        return cls(**{**building.known(cls, values), "sources": sources, "shards": shards})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def prepare_command() -> str:
    """What makes data that is missing or damaged, as a user types it."""
    return f"{hints.command('prepare')} data=…"


def read_manifest(directory: Path) -> Manifest:
    """Manifest of prepared data. InputError if there is none, or it cannot be used."""
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        if values.get("version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format {values.get('version')}, written by another version of "
                f"hpc_llm; this one reads {FORMAT_VERSION}: use a checkout of that version, or "
                f"prepare into another data.out: {prepare_command()}"
            )
        return Manifest.from_dict(values)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}: this data is not prepared; type: {prepare_command()}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove the folder and prepare again: {prepare_command()}"
        ) from None


def _check_documents(counts: Mapping[str, int]) -> None:
    """ValueError unless every document is to train on, held out, rejected or a duplicate."""
    known = counts["train"] + counts["heldout"] + counts["rejects"] + counts["duplicates"]
    if counts["in"] != known:
        raise ValueError(f"documents do not add up: {counts}")


def facts(directory: Path) -> DataFacts:
    """What planning needs to know of prepared data. InputError as `read_manifest`."""
    manifest = read_manifest(directory)
    return DataFacts(
        directory=os.path.abspath(directory),  # noqa: PTH100 – resolve() would follow links
        tokens=manifest.tokens["train"],
        heldout_tokens=manifest.tokens["heldout"],
        vocab_size=manifest.vocab_size,
        unigram_entropy=manifest.unigram_entropy,
        source_tokens={name: source.tokens["train"] for name, source in manifest.sources.items()},
        digests=manifest.digests,
    )


def num_samples(manifest: Manifest, split: str, seq_len: int) -> dict[str, int]:
    """Samples of each source where documents are concatenated, as shards.ShardSet cuts them."""
    counts = dict.fromkeys(manifest.sources, 0)
    for shard in manifest.shards[split]:
        counts[shard.source] += max(0, shard.tokens - 1) // seq_len
    return counts


def tokenizer_file(content: bytes) -> str:
    """What a tokenizer with this content is called; empty where one is trained."""
    return "tokenizer.json" if content.lstrip()[:1] == b"{" else "tokenizer.model"


def check_digests(directory: Path, planned: Mapping[str, str]) -> None:
    """InputError where prepared data are not those that a run was planned with."""
    present = read_manifest(directory).digests
    changed = [name for name, digest in planned.items() if present.get(name) != digest]
    if changed:
        raise InputError(
            f"{directory}: prepared anew since this run was submitted, with other tokens of "
            f"{', '.join(changed)}; bring back the data that it began with, or train another "
            "run.name"
        )
