"""How many samples of each source the first n global batches hold: exact, and as fast for any n."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

MOST_CYCLE = 1000  # global batches within which every source must appear


class Shares:
    """Apportionment of global batches of `batch` samples to sources by `weights`.

    After every global batch the count of each source differs from weight × samples by less than 1
    if every source has at least one sample per batch, or if a cycle of at most MOST_CYCLE batches
    holds whole numbers of all; else by less than 2. Counts add up and never decrease.

    Every `cycle` batches counts are rounded by largest remainders. Within a cycle the u-th sample
    of a source with m samples has the window of batches of its fluid schedule, ((u − 1)·cycle/m,
    u·cycle/m), rounded outwards, and the earliest deadline goes first: a schedule exists (the fluid
    one, and flows with integer capacities have integer solutions), and for equal jobs this rule
    finds it (Baruah et al., "Proportionate Progress", Algorithmica 1996).
    """

    def __init__(self, weights: Sequence[Fraction], batch: int) -> None:
        """Sources with weight 0 are left out.

        ValueError if no weight is above 0, or one is below `least_weight`.
        """
        total = sum(weights, Fraction(0))
        if total <= 0 or min(weights) < 0:
            raise ValueError("weights must not be negative, and one above 0")
        self.weights = tuple(weight / total for weight in weights)
        self.batch = batch
        whole = math.lcm(*(weight.denominator for weight in self.weights))
        # Integers are ten times faster than fractions.
        self._parts = [int(weight * whole) for weight in self.weights]
        used = [weight for weight in self.weights if weight]
        if min(used) < least_weight(batch):
            raise ValueError(f"a weight below {float(least_weight(batch)):g} of the whole")
        self.cycle = _cycle(used, batch)
        self._rows = functools.lru_cache(maxsize=2)(self._cycle_rows)

    def before(self, number: int) -> tuple[int, ...]:
        """Samples of each source in the first `number` global batches."""
        cycle, within = divmod(number, self.cycle)
        return self._rows(cycle)[within]

    def _cycle_rows(self, cycle: int) -> list[tuple[int, ...]]:
        """`before` of each batch of a cycle."""
        samples = self.cycle * self.batch
        first = self._rounded(cycle * samples)
        end = self._rounded((cycle + 1) * samples)
        counts = [after - before for before, after in zip(first, end, strict=True)]
        rows = [tuple(first)]
        done = [0] * len(counts)
        for batches in range(1, self.cycle):
            due = [count * batches // self.cycle for count in counts]
            waiting = []
            for source, count in enumerate(counts):
                done[source] = max(done[source], due[source])
                if done[source] == due[source] and count * batches % self.cycle:
                    deadline = -(-(due[source] + 1) * self.cycle // count)  # in batches
                    waiting.append((deadline, source))
            for _, source in sorted(waiting)[: batches * self.batch - sum(done)]:
                done[source] += 1
            rows.append(sums(first, done))
        return rows

    def _rounded(self, samples: int) -> list[int]:
        return largest_remainders(self._parts, samples)


def sums(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The sum of each pair of numbers."""
    return tuple(one + other for one, other in zip(first, second, strict=True))


def largest_remainders(parts: Sequence[int], samples: int) -> list[int]:
    """`samples` in proportion to `parts`: floors, and one more for the largest remainders."""
    whole = sum(parts)
    exact = [divmod(part * samples, whole) for part in parts]
    counts = [count for count, _ in exact]
    # Stable: the first of equal ones comes first.
    order = sorted(range(len(parts)), key=lambda source: -exact[source][1])
    for source in order[: samples - sum(counts)]:
        counts[source] += 1
    return counts


def least_weight(batch: int) -> Fraction:
    """The smallest share of a source: one sample in MOST_CYCLE global batches."""
    return Fraction(1, MOST_CYCLE * batch)


def _cycle(used: Sequence[Fraction], batch: int) -> int:
    """Global batches from one rounding to the next: one if each has a sample of every source.

    Else the fewest that hold whole numbers of all; if that is more than MOST_CYCLE, the fewest that
    hold one sample of the rarest.
    """
    rarest = math.ceil(1 / (min(used) * batch))
    if rarest == 1:
        return 1
    whole = math.lcm(*((weight * batch).denominator for weight in used))
    return whole if whole <= MOST_CYCLE else rarest
