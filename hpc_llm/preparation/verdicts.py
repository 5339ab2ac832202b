"""Between the two passes over the corpus: what happens to each document, and the tokenizer's text.

The decisions themselves are in split.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig
from hpc_llm.preparation import split
from hpc_llm.preparation.arrays import read_arrays, write_arrays
from hpc_llm.preparation.chunks import Chunk

# Text kept in the first pass ÷ text wanted: duplicates and held-out text are removed from it later.
_SPARE = 2
_REJECTS_SHOWN = 3


def sample_shares(config: DataConfig, chunks: Sequence[Chunk]) -> dict[str, float]:
    """Which fraction of each source's text is kept for the tokenizer in the first pass."""
    if config.tokenizer is not None:
        return dict.fromkeys((chunk.source for chunk in chunks), 0.0)
    sizes = _sizes(chunks)
    budgets = _budgets(config, sizes)
    shares = {}
    for name, size in sizes.items():
        shares[name] = min(1.0, _SPARE * budgets[name] / size) if size else 1.0
    return shares


def decide_all(config: DataConfig, scans: Sequence[Path], out: Path) -> None:
    """Write what happens to every document of all chunks.

    InputError if too many are unusable, or none is left.
    """
    verdicts_by_chunk = []
    digests_by_chunk = []
    for path in scans:
        scanned = read_arrays(path, "verdicts", "digests")
        verdicts_by_chunk.append(scanned["verdicts"])
        digests_by_chunk.append(scanned["digests"])
    starts = np.cumsum([0, *map(len, verdicts_by_chunk)])
    verdicts = np.concatenate(verdicts_by_chunk)
    digests = np.concatenate(digests_by_chunk)
    num_in = int((verdicts != split.FILTERED).sum())
    num_rejects = int((verdicts == split.REJECTED).sum())
    check_rejects(config, num_in, num_rejects, scans)
    if num_in == 0:
        raise InputError(
            "data.min_chars, data.max_chars, data.where: no document passes them; loosen them"
        )
    good = verdicts == split.TRAIN
    verdicts[good] = split.decide(digests[good], config.heldout_fraction, config.deduplicate)
    write_arrays(out, verdicts=verdicts, starts=starts.astype(np.int64))


def check_rejects(config: DataConfig, num_in: int, num_rejects: int, parts: Sequence[Path]) -> None:
    """InputError if more documents are unusable than data.max_reject_fraction allows.

    parts: files of arrays whose `rejects` list them.
    """
    allowed = num_rejects <= config.max_reject_fraction * num_in and num_rejects < num_in
    if num_rejects == 0 or allowed:
        return
    reasons = [f"{reject['file']}: {reject['reason']}" for reject in _first_rejects(parts)]
    if num_rejects > _REJECTS_SHOWN:
        reasons.append("…")
    raise InputError(
        f"data.max_reject_fraction={config.max_reject_fraction:g}: {num_rejects} of {num_in} "
        f"documents are unusable ({'; '.join(reasons)}); mend or remove them, or raise the fraction"
    )


@dataclass
class _Candidates:
    """Parts of a source's training text, of which the sample is chosen."""

    texts: list[bytes] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return [len(text) for text in self.texts]

    def add(self, scanned: Mapping[str, np.ndarray], verdicts: np.ndarray) -> None:
        """Add what the first pass kept of a chunk, where it is of documents to train on."""
        ends = np.cumsum(scanned["stretch_bytes"])
        to_train_on = verdicts[scanned["stretch_documents"]] == split.TRAIN
        for index in np.flatnonzero(to_train_on).tolist():
            start = int(ends[index] - scanned["stretch_bytes"][index])
            self.texts.append(scanned["stretches"][start : int(ends[index])].tobytes())
            self.keys.append(int(scanned["stretch_keys"][index]))

    def sample(self, budget: int) -> list[str]:
        """Texts of at most `budget` bytes."""
        chosen = split.sample(np.array(self.keys, np.uint64), np.array(self.sizes), budget)
        return [self.texts[index].decode() for index in chosen]


def tokenizer_sample(
    config: DataConfig,
    chunks: Sequence[Chunk],
    scans: Sequence[Path],
    verdicts: Sequence[np.ndarray],
) -> list[str]:
    """Texts to train the tokenizer on: only from training documents, evenly from the sources."""
    names = ("stretches", "stretch_bytes", "stretch_documents", "stretch_keys")
    candidates: dict[str, _Candidates] = {}
    for chunk, path, own in zip(chunks, scans, verdicts, strict=True):
        candidates.setdefault(chunk.source, _Candidates()).add(read_arrays(path, *names), own)
    sizes = {name: sum(each.sizes) for name, each in candidates.items() if each.texts}
    budgets = _budgets(config, sizes)
    texts: list[str] = []
    for name in sorted(sizes):
        texts += candidates[name].sample(budgets[name])
    return texts


def _budgets(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each source's text for the tokenizer."""
    return split.budgets(sizes, int(config.tokenizer_sample_mb * 1e6))


def _sizes(chunks: Sequence[Chunk]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for chunk in chunks:
        sizes[chunk.source] = sizes.get(chunk.source, 0) + chunk.num_bytes
    return sizes


def _first_rejects(parts: Sequence[Path]) -> list[dict[str, str]]:
    rejects: list[dict[str, str]] = []
    for path in parts:
        lines = read_arrays(path, "rejects")["rejects"].tobytes().splitlines()
        rejects += [json.loads(line) for line in lines]
        if len(rejects) >= _REJECTS_SHOWN:
            break
    return rejects[:_REJECTS_SHOWN]
