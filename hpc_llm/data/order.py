"""(seed, position) → sample ids: a keyed permutation per epoch, computed on demand.

No index is built and no state is kept, so any position in any epoch costs the same.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

# Even. Luby and Rackoff need 4 for random round functions; two more help very small domains.
_ROUNDS = 6


def sample_ids(seed: int, start: int, count: int, num_samples: int, stream: str = "") -> np.ndarray:
    """Ids at positions start … start + count − 1 of the endless stream of epochs: int64 [count].

    Every epoch of `num_samples` positions visits every id in [0, num_samples) exactly once, in an
    order that differs for each epoch and each `stream` (a source's name). A batch holds a sample
    twice only if it straddles epochs. `num_samples` is from 1 to 2^62.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: at least 1 is needed")
    ids = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, first = divmod(start + done, num_samples)
        length = min(count - done, num_samples - first)
        positions = np.arange(first, first + length, dtype=np.uint64)
        keys = _round_keys(seed, epoch, stream)
        ids[done : done + length] = _permute(positions, num_samples, keys)
        done += length
    return ids


def shuffles(seed: int, start: int, count: int, size: int) -> np.ndarray:
    """A permutation of range(size) for each of the steps start … start + count − 1.

    int64 [count, size]. Sorts random keys, so it is for global batches, not for data.
    """
    key = _round_keys(seed, 0, " rows")[0]  # no source's name begins with a space
    positions = np.arange(start * size, (start + count) * size, dtype=np.uint64)
    keys = _mixed(positions.reshape(count, size), key)
    return np.argsort(keys, axis=1, kind="stable")


def _round_keys(seed: int, epoch: int, stream: str) -> np.ndarray:
    text = f"hpc_llm order {seed} {epoch}"
    if stream:
        text += f" {stream}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _permute(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, size) at `positions`: uint64 [n] → uint64 [n].

    Generalised Feistel network on [a] × [b] with a·b ≥ size, and cycle walking for values at or
    above `size`: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, methods 3
    and 2. With a = ⌈√size⌉ fewer than one value in a is walked again; splitting the bits in half
    would walk up to 3 in 4.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    out = _feistel(positions, a, b, keys)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _feistel(out[outside], a, b, keys)
        outside = outside[out[outside] >= size]
    return out


def _feistel(values: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    sizes = (np.uint64(a), np.uint64(b))
    right = values // sizes[0]  # in [0, b)
    left = values - right * sizes[0]  # in [0, a)
    halves = [left, right]
    for number, key in enumerate(keys):
        turn = number % 2
        size = sizes[turn]
        half = halves[turn]
        half += _below(halves[1 - turn], key, size)
        half -= (half >= size) * size
    return halves[1] * sizes[0] + halves[0]


def _below(values: np.ndarray, key: np.uint64, size: np.uint64) -> np.ndarray:
    """Keyed pseudo-random numbers in [0, size), for size ≤ 2^31.

    The upper half is scaled (Lemire, TOMACS 2019).
    """
    mixed = _mixed(values, key)
    mixed >>= np.uint64(32)
    mixed *= size
    mixed >>= np.uint64(32)
    return mixed


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Keyed pseudo-random uint64.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed: np.ndarray = values ^ key
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
