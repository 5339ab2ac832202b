"""What happens to each document, and what the tokenizer is trained on.

These are functions of content alone, not of who reads it, or in which order.
Two texts are the same if their digests are. Of equal texts the first in the order (source, file,
place) is kept. Whether a text is held out depends only on its digest, so equal texts are on one
side even if all copies are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpc_llm.config.errors import InputError

TRAIN, HELDOUT, DUPLICATE, REJECTED, FILTERED = range(5)
NUM_VERDICTS = 5


def decide(digests: np.ndarray, fraction: float, deduplicate: bool) -> np.ndarray:
    """TRAIN, HELDOUT or DUPLICATE for documents with these digests, uint8 [n, 16] → uint8 [n].

    Digests below `fraction` of the range are held out, or else the lowest one. Takes about 60 bytes
    per document. InputError if that leaves nothing to train on.
    """
    halves = digests.view(">u8").astype(np.uint64)  # [n, 2], the first 8 bytes decide the order
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    held = halves[:, 0] < np.uint64(min(fraction * 2**64, 2**64 - 1))
    if len(order) and not held.any():
        held = (halves == halves[order[0]]).all(axis=1)
    if held.all():
        raise InputError(
            f"data.heldout_fraction={fraction:g}: leaves nothing to train on of "
            f"{_distinct(halves, order)} distinct document(s); give more text, split it into "
            "documents with data.split, or lower the fraction"
        )
    verdicts = np.where(held, HELDOUT, TRAIN).astype(np.uint8)
    if deduplicate:
        again = np.flatnonzero((halves[order[1:]] == halves[order[:-1]]).all(axis=1)) + 1
        verdicts[order[again]] = DUPLICATE  # lexsort is stable: the first of equals comes first
    return verdicts


def _distinct(halves: np.ndarray, order: np.ndarray) -> int:
    return int((halves[order[1:]] != halves[order[:-1]]).any(axis=1).sum()) + min(1, len(order))


def budgets(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """`budget` bytes divided evenly over sources of these sizes.

    What a small source lacks, the others provide.
    """
    shares: dict[str, int] = {}
    smallest_first = sorted(sizes, key=lambda name: (sizes[name], name))
    for number, name in enumerate(smallest_first):
        num_left = len(sizes) - number
        shares[name] = min(sizes[name], budget // num_left)
        budget -= shares[name]
    return shares


def sample(keys: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Which texts make up a sample of at most `budget` bytes: indices in the order of their keys.

    Keys (uint64 [n]) are hashes: a random order independent of file names. The first is always
    included.
    """
    order = np.lexsort((sizes, keys))
    num_fitting = int(np.searchsorted(np.cumsum(sizes[order]), budget, side="right"))
    return order[: max(1, num_fitting)]
