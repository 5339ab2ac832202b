"""Batch arithmetic: which rank computes which rows of the global batch in which pass.

Ranks hold contiguous rows, so that the order over (rank, pass) is the order of the global batch at
any number of ranks. Counts need not be divisible: ranks differ by at most one row, and the last
pass of a rank may be shorter or empty. Every rank makes the same number of passes (collectives must
match); short ones are padded with masked rows.
"""

from __future__ import annotations

MOST_TOKENS = 2**16  # of a pass: with more, a GPU's products get no faster
MOST_SEQUENCES = 16  # if these are more tokens


def rows_per_rank(global_batch: int, world_size: int) -> int:
    """Most rows that a rank holds; some ranks hold one fewer if the count is not divisible."""
    return -(-global_batch // world_size)


def accumulation(global_batch: int, world_size: int, micro_batch: int) -> int:
    """Passes per optimizer step, the same on every rank. ValueError if a rank would have no row."""
    if global_batch < world_size:
        raise ValueError(f"{global_batch} rows are too few for {world_size} ranks")
    return -(-rows_per_rank(global_batch, world_size) // micro_batch)


def pass_rows(
    global_batch: int, world_size: int, micro_batch: int, rank: int, index: int
) -> tuple[int, int]:
    """Half-open range of global-batch rows that `rank` computes in pass `index`.

    Empty if it has none left.
    """
    first = rank * global_batch // world_size
    end = (rank + 1) * global_batch // world_size
    start = min(first + index * micro_batch, end)
    return start, min(start + micro_batch, end)


def padded_rows(global_batch: int, world_size: int, micro_batch: int) -> int:
    """Masked rows that all ranks compute in one step, in addition to the real ones."""
    return (
        accumulation(global_batch, world_size, micro_batch) * micro_batch * world_size
        - global_batch
    )


def most_sequences(seq_len: int) -> int:
    """The largest micro-batch worth trying."""
    return max(MOST_SEQUENCES, MOST_TOKENS // seq_len)


def microbatch_candidates(rows: int, cap: int) -> list[int]:
    """Micro-batches worth trying for `rows` rows per rank, best first.

    Only the smallest size for each number of passes is worth it: more would be padding. Larger
    sizes come first, except that a divisor of `rows` at least half as large precedes them, because
    it needs no padding at all.
    """
    left = sorted(
        {-(-rows // passes) for passes in range(1, rows + 1)} & set(range(1, cap + 1)), reverse=True
    )
    ordered = []
    while left:
        largest = left[0]
        best = next((size for size in left if rows % size == 0 and 2 * size >= largest), largest)
        ordered.append(best)
        left.remove(best)
    return ordered
