"""Documents → rows of `capacity` positions by best fit. Pure.

Few documents are cut, and there is little padding.

A position is a pair of a token and the next one, its target: a document of n tokens has n − 1.
Longer documents are cut into pieces of `capacity` positions and a remainder; only remainders are
packed, the longest first, each into the fullest row that has room (Ding et al., "Fewer Truncations
Improve Language Modeling", arXiv 2404.10830).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Packed together: more would not fill rows better, and memory stays bounded.
WINDOW_DOCUMENTS = 1 << 18


@dataclass(frozen=True)
class Packed:
    """Pieces of documents in rows.

    Piece p has `sizes[p]` positions from token `starts[p]` on; row r holds the pieces
    ends[r−1]:ends[r].
    """

    starts: np.ndarray  # int64 [pieces]
    sizes: np.ndarray  # int64 [pieces]
    ends: np.ndarray  # int64 [rows]


def pack(offsets: np.ndarray, capacity: int, window: int = WINDOW_DOCUMENTS) -> Packed:
    """Rows for documents that begin at `offsets` (int [documents + 1], the end last).

    Documents of a single token are left out.
    """
    starts = [np.empty(0, np.int64)]
    sizes = [np.empty(0, np.int64)]
    ends = [np.empty(0, np.int64)]
    num_pieces = 0
    for first in range(0, len(offsets) - 1, window):
        packed = _pack_window(offsets[first : first + window + 1].astype(np.int64), capacity)
        starts.append(packed.starts)
        sizes.append(packed.sizes)
        ends.append(packed.ends + num_pieces)
        num_pieces += len(packed.starts)
    return Packed(np.concatenate(starts), np.concatenate(sizes), np.concatenate(ends))


def best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of `sizes` (each from 1 to capacity) row by row, best-fit decreasing.

    Equal sizes keep their order. Rows are kept in lists by the room they have left, and the bits of
    one integer say which lists are not empty: the lowest bit at or above a size is the best fit.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            rows[row].append(piece)
        else:
            room = capacity
            row = len(rows)
            rows.append([piece])
        if left := room - size:
            by_room[left].append(row)
            rooms |= 1 << left
    return rows


def _pack_window(offsets: np.ndarray, capacity: int) -> Packed:
    sizes = np.maximum(np.diff(offsets) - 1, 0)
    whole = sizes // capacity  # pieces that fill a row
    within = np.arange(whole.sum()) - np.repeat(np.cumsum(whole) - whole, whole)
    whole_starts = np.repeat(offsets[:-1], whole) + within * capacity
    left = np.flatnonzero(sizes % capacity)
    rows = best_fit(sizes[left] % capacity, capacity)
    order: list[int] = []
    for row in rows:
        order += sorted(row)
    pieces = left[np.array(order, np.int64)]
    num_whole = len(whole_starts)
    whole_ends = np.arange(1, num_whole + 1)
    ends = num_whole + np.cumsum([*map(len, rows)])
    return Packed(
        np.concatenate([whole_starts, offsets[pieces] + whole[pieces] * capacity]),
        np.concatenate([np.full(num_whole, capacity), sizes[pieces] % capacity]),
        np.concatenate([whole_ends, ends]).astype(np.int64),
    )
