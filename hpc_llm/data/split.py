"""Which documents are held out, and which the tokenizer is trained on: functions of content, not of file order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from hpc_llm.config.errors import InputError


def heldout_digests(digests: Sequence[bytes], fraction: float) -> set[bytes]:
    """SHA-256 digests of the documents that are held out: those below `fraction` of the range, or else the lowest.

    Documents of equal text share a digest and so a side: held-out text never leaks into training.
    InputError if that leaves nothing to train on.
    """
    distinct = set(digests)
    heldout = {digest for digest in distinct if int.from_bytes(digest[:8], "big") < fraction * 2**64}
    heldout = heldout or set(heapq.nsmallest(1, distinct))
    if len(heldout) == len(distinct):
        raise InputError(
            f"data.heldout_fraction={fraction:g}: leaves nothing to train on of {len(distinct)} distinct document(s); "
            "a document is a file: give more files, or lower the fraction"
        )
    return heldout


def sample_bytes(digests: Sequence[bytes], sizes: Sequence[int], budget: int) -> dict[int, int]:
    """How much of which document the tokenizer is trained on: index → bytes from its start, at most `budget` in all.

    Documents come in the order of their digests (a random order that file names cannot change), each with at most a
    sixteenth of the budget unless the corpus is too small for that, so that one huge file does not make the vocabulary.
    """
    most = max(budget // 16, 1)
    while sum(min(size, most) for size in sizes) < budget and most < max(sizes):
        most *= 2
    chosen: dict[int, int] = {}
    for index in sorted(range(len(sizes)), key=lambda index: digests[index]):
        taken = min(sizes[index], most, budget)
        if taken == 0:
            break
        chosen[index] = taken
        budget -= taken
    return chosen
