"""(seed, step) → which sample of which source each row of a global batch is. No index, no state.

And which samples of held-out text are evaluated: the same for every seed.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import numpy as np

from hpc_llm.data.order import sample_ids, shuffles
from hpc_llm.planning.mixture import Source, Stage

_HELDOUT_SEED = 0  # never to be changed: losses of runs with different seeds compare
# Worked out at once: a permutation of a few ids costs numpy's overhead many times over.
_BLOCK_SAMPLES = 4096


@dataclass(frozen=True)
class Rows:
    """Which sample each row is: int64 [steps, global_batch], or [rows] of held-out text."""

    sources: np.ndarray  # index of the source
    samples: np.ndarray  # id within it


class Mixture:
    """What makes up each step.

    Each source is its own stream of epochs, continued where the step before left it.
    """

    def __init__(
        self, seed: int, sources: Sequence[Source], stages: Sequence[Stage], global_batch: int
    ) -> None:
        self.sources = tuple(sources)
        self.stages = tuple(stages)
        self._seed = seed
        self._global_batch = global_batch
        self._starts = [stage.start for stage in stages]
        self._block_steps = max(1, _BLOCK_SAMPLES // global_batch)
        self._block: tuple[int, Rows] | None = None

    def stage(self, step: int) -> Stage:
        """The stage that contains optimizer step `step` (from 0)."""
        return self.stages[bisect_right(self._starts, step) - 1]

    def step(self, step: int) -> Rows:
        """Rows of one step: [global_batch] each."""
        number, within = divmod(step, self._block_steps)
        block = self._block  # once, for several threads may ask
        if block is None or block[0] != number:
            rows = self.steps(number * self._block_steps, self._block_steps)
            self._block = block = (number, rows)
        return Rows(block[1].sources[within], block[1].samples[within])

    def steps(self, start: int, count: int) -> Rows:
        """Rows of steps start … start + count − 1."""
        batch = self._global_batch
        if len(self.sources) == 1:
            ids = self._stream(0, start * batch, count * batch)
            return Rows(np.zeros((count, batch), np.int64), ids.reshape(count, batch))
        taken = self._taken(start, count)
        numbers = np.arange(len(self.sources))
        unshuffled = np.stack([np.repeat(numbers, counts) for counts in np.diff(taken, axis=0)])
        order = shuffles(self._seed, start, count, batch)
        sources = np.take_along_axis(unshuffled, order, axis=1)
        samples = np.empty_like(sources)
        for source, (first, end) in enumerate(zip(taken[0], taken[-1], strict=True)):
            if end > first:
                samples[sources == source] = self._stream(source, int(first), int(end - first))
        return Rows(sources, samples)

    def _taken(self, start: int, count: int) -> np.ndarray:
        """Samples taken of each source before each step, and after the last: [count + 1, sources].

        The stage of the last step says what is taken after it.
        """
        taken = [self.stage(step).before(step) for step in range(start, start + count)]
        end = start + count
        taken.append(self.stage(end - 1).before(end))
        return np.array(taken, np.int64)

    def _stream(self, source: int, start: int, count: int) -> np.ndarray:
        name = self.sources[source].name
        return sample_ids(self._seed, start, count, self.sources[source].num_samples, name)


def heldout_rows(sources: Sequence[Source], weights: Mapping[str, float], most: int) -> Rows:
    """The first `most` rows of the held-out text of `sources`, or all there are.

    Fewer rows are a beginning of more. Any beginning has the sources in proportion to their
    `weights` (above 0), by the method of Webster and Sainte-Laguë; a source that has no row left
    gives its turns to the others. Its rows come in a fixed keyed permutation.
    """
    paces = [1 / Fraction(str(weights[source.name])) for source in sources]
    unit = 1  # that makes every pace a whole number
    for pace in paces:
        unit = math.lcm(unit, pace.denominator)
    turns = []
    for number, (source, pace) in enumerate(zip(sources, paces, strict=True)):
        turns.append(_turns(number, int(pace * unit), source.num_samples))
    merged = heapq.merge(*turns)
    taken = np.array([number for _, number in islice(merged, most)], np.int64)
    samples = np.empty_like(taken)
    for number, source in enumerate(sources):
        own = np.flatnonzero(taken == number)
        if len(own):
            stream = f" heldout {source.name}"
            samples[own] = sample_ids(_HELDOUT_SEED, 0, len(own), source.num_samples, stream)
    return Rows(taken, samples)


def _turns(number: int, pace: int, count: int) -> Iterator[tuple[int, int]]:
    """When the rows of source `number` are due: at odd multiples of its `pace`, a whole number."""
    for turn in range(1, 2 * count, 2):
        yield pace * turn, number
