"""Between the two passes over the corpus: what happens to each document, and the text to train the
tokenizer on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig
from hpc_llm.preparation import split
from hpc_llm.preparation.arrays import read_arrays, write_arrays
from hpc_llm.preparation.chunks import Chunk

# text kept in the first pass ÷ text wanted: duplicates and held-out text are removed from it later
_SPARE = 2


def sample_shares(config: DataConfig, chunks: Sequence[Chunk]) -> dict[str, float]:
    """Which fraction of each source's text is kept for the tokenizer in the first pass."""
    if config.tokenizer is not None:
        return dict.fromkeys((chunk.source for chunk in chunks), 0.0)
    sizes = _sizes(chunks)
    budgets = split.budgets(sizes, int(config.tokenizer_sample_mb * 1e6))
    return {
        name: min(1.0, _SPARE * budgets[name] / sizes[name]) if sizes[name] else 1.0
        for name in sizes
    }


def decide_all(config: DataConfig, scans: Sequence[Path], out: Path) -> None:
    """Write what happens to every document of all chunks. InputError if too many are unusable, or
    none is left.
    """
    found = [read_arrays(path, "verdicts", "digests") for path in scans]
    starts = np.cumsum([0, *(len(each["verdicts"]) for each in found)])
    verdicts = np.concatenate([each["verdicts"] for each in found])
    digests = np.concatenate([each["digests"] for each in found])
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
    """InputError if more documents are unusable than data.max_reject_fraction allows; `parts` list
    them.
    """
    if num_rejects == 0 or (
        num_rejects <= config.max_reject_fraction * num_in and num_rejects < num_in
    ):
        return
    shown = [f"{line['file']}: {line['reason']}" for line in _first_rejects(parts, 3)]
    raise InputError(
        f"data.max_reject_fraction={config.max_reject_fraction:g}: {num_rejects} of {num_in} "
        f"documents are unusable ({'; '.join(shown)}{'; …' if num_rejects > 3 else ''}); mend or "
        "remove them, or raise the fraction"
    )


def tokenizer_sample(
    config: DataConfig,
    chunks: Sequence[Chunk],
    scans: Sequence[Path],
    verdicts: Sequence[np.ndarray],
) -> list[str]:
    """Texts to train the tokenizer on: only from training documents, evenly from the sources."""
    texts: dict[str, list[bytes]] = {}
    keys: dict[str, list[int]] = {}
    for chunk, path, verdict in zip(chunks, scans, verdicts, strict=True):
        scanned = read_arrays(
            path, "stretches", "stretch_bytes", "stretch_documents", "stretch_keys"
        )
        ends = np.cumsum(scanned["stretch_bytes"])
        for index in np.flatnonzero(verdict[scanned["stretch_documents"]] == split.TRAIN).tolist():
            start = int(ends[index] - scanned["stretch_bytes"][index])
            texts.setdefault(chunk.source, []).append(
                scanned["stretches"][start : int(ends[index])].tobytes()
            )
            keys.setdefault(chunk.source, []).append(int(scanned["stretch_keys"][index]))
    sizes = {name: sum(map(len, found)) for name, found in texts.items()}
    budgets = split.budgets(sizes, int(config.tokenizer_sample_mb * 1e6))
    return [
        texts[name][index].decode()
        for name in sorted(texts)
        for index in split.sample(
            np.array(keys[name], np.uint64), np.array([*map(len, texts[name])]), budgets[name]
        )
    ]


def _sizes(chunks: Sequence[Chunk]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for chunk in chunks:
        sizes[chunk.source] = sizes.get(chunk.source, 0) + chunk.num_bytes
    return sizes


def _first_rejects(parts: Sequence[Path], most: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for path in parts:
        found += map(json.loads, read_arrays(path, "rejects")["rejects"].tobytes().splitlines())
        if len(found) >= most:
            break
    return found[:most]
