"""Which mixture holds from which step: phases as configured, and stages, as caps divide them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.planning.shares import Shares, largest_remainders, sums


@dataclass(frozen=True)
class Source:
    """What the mixture needs to know about a source."""

    name: str
    num_samples: int
    max_epochs: float | None = None

    @property
    def cap(self) -> float:
        """Samples that may be taken from it, repeats included."""
        if self.max_epochs is None:
            return math.inf
        return math.floor(_exact(self.max_epochs) * self.num_samples)


@dataclass(frozen=True)
class Phase:
    """Weights from optimizer step `start` on; sources that are not named get none."""

    start: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """Steps with constant shares."""

    start: int
    seen: tuple[int, ...]  # samples of each source that were taken before `start`
    shares: Shares
    phase: int  # index of the phase it lies in

    def before(self, step: int) -> tuple[int, ...]:
        """Samples of each source in all steps before `step`, which is in this stage or ends it."""
        return sums(self.seen, self.shares.before(step - self.start))


def begun(phases: Sequence[Phase], step: int) -> list[dict[str, Any]]:
    """The phases that begin before `step`, as plain data: what a checkpoint was trained with."""
    return [asdict(phase) for phase in phases if phase.start < step]


def check_begun(trained: list[dict[str, Any]], phases: Sequence[Phase], step: int) -> None:
    """InputError if the checkpoint of `step` was `trained` with other phases than these."""
    if trained and trained != begun(phases, step):
        before = {}
        for phase in trained:
            if phase["start"]:
                before[f"{phase['start']}steps"] = phase["weights"]
        raise InputError(
            f"data.mixture: the checkpoint of step {step} was trained with other weights; give "
            f"those it had before ({before or trained[0]['weights']}) and new ones from "
            f"{step}steps on"
        )


def evaluated(phases: Sequence[Phase], steps: int) -> dict[str, float]:
    """Weights above 0 of the phase in which a run of `steps` ends.

    They make up its held-out loss.
    """
    last = phases[0]
    for phase in phases:
        if phase.start < max(steps, 1):
            last = phase
    return {name: weight for name, weight in last.weights.items() if weight > 0}


def stages(
    phases: Sequence[Phase], sources: Sequence[Source], batch: int, steps: int
) -> list[Stage]:
    """The stages of `steps` global batches of `batch` samples.

    They depend only on the phases before them, so a phase added later changes nothing before its
    start. A source that reaches its cap gives what is left of it to one more batch; from then on
    its share goes to the others of the phase in proportion. InputError if a source has no sample or
    too small a weight, or no source is left.
    """
    mixed: list[Stage] = []
    step = 0
    seen = (0,) * len(sources)
    for index, phase in enumerate(phases):
        end = steps
        if index + 1 < len(phases):
            end = phases[index + 1].start
        while step < min(end, steps):
            weights = _open_weights(phase, sources, seen, step, steps)
            stage = Stage(step, seen, _shares(weights, sources, batch), index)
            mixed.append(stage)
            rooms = _rooms(sources, seen)
            step = min(end, step + _batches_within(stage.shares, rooms, end - step))
            seen = stage.before(step)
            if step < min(end, steps):
                counts = _last_batch(weights, sources, seen, batch, step, steps)
                shares = Shares([Fraction(count, batch) for count in counts], batch)
                mixed.append(Stage(step, seen, shares, index))
                step = step + 1
                seen = sums(seen, counts)
    ends = [*(stage.start for stage in mixed[1:]), steps]
    return [stage for stage, end in zip(mixed, ends, strict=True) if stage.start < end]


def _open_weights(
    phase: Phase, sources: Sequence[Source], seen: Sequence[int], step: int, steps: int
) -> list[Fraction]:
    """Weights of the sources that have not reached their caps; 0 of the others."""
    weights = []
    for source, taken in zip(sources, seen, strict=True):
        weight = phase.weights.get(source.name, 0.0) if taken < source.cap else 0.0
        weights.append(_exact(weight))
    if not any(weights):
        raise _used_up(sources, step, steps)
    return weights


def _shares(weights: list[Fraction], sources: Sequence[Source], batch: int) -> Shares:
    for source, weight in zip(sources, weights, strict=True):
        if weight and source.num_samples == 0:
            raise InputError(
                f"data: source {source.name} has less text than one sample of train.seq_len "
                "tokens; give it more text, lower train.seq_len, or set its weight to 0"
            )
    try:
        return Shares(weights, batch)
    except ValueError as error:
        raise InputError(
            f"data: {error} is less than one sample in 1000 global batches of {batch}; "
            "raise it, raise train.global_batch, or set it to 0"
        ) from None


def _batches_within(shares: Shares, rooms: Sequence[float], most: int) -> int:
    """Batches, at most `most`, in which no source uses more than its room."""
    low = 0
    high = most  # `low` fits; counts never fall, so halving finds the last that does
    for weight, room in zip(shares.weights, rooms, strict=True):
        if weight and room < math.inf:
            # Counts are exact within 2.
            high = min(high, math.ceil((int(room) + 2) / (weight * shares.batch)))
    while low < high:
        middle = (low + high + 1) // 2
        counts = zip(shares.before(middle), rooms, strict=True)
        if all(count <= room for count, room in counts):
            low = middle
        else:
            high = middle - 1
    return low


def _last_batch(
    weights: Sequence[Fraction],
    sources: Sequence[Source],
    seen: Sequence[int],
    batch: int,
    step: int,
    steps: int,
) -> list[int]:
    """A batch in which no source gives more than it has left; others fill it in proportion."""
    rooms = _rooms(sources, seen)
    whole = math.lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * whole) for weight in weights]
    counts = [0] * len(sources)
    open_ = {index for index, part in enumerate(parts) if part}
    while True:
        if not open_:
            raise _used_up(sources, step, steps)
        wanted = largest_remainders(parts, batch - sum(counts))
        full = {index for index in open_ if wanted[index] > rooms[index]}
        if not full:
            return list(sums(counts, wanted))
        for index in full:
            counts[index] = int(rooms[index])
            parts[index] = 0
        open_ -= full


def _rooms(sources: Sequence[Source], seen: Sequence[int]) -> list[float]:
    """Samples that each source has left."""
    return [source.cap - taken for source, taken in zip(sources, seen, strict=True)]


def _used_up(sources: Sequence[Source], step: int, steps: int) -> InputError:
    capped = ", ".join(source.name for source in sources if source.cap < math.inf)
    return InputError(
        f"data: at step {step:,} of {steps:,} every source of the mixture has reached its "
        f"max_epochs ({capped}); raise max_epochs, prepare more text, or lower train.duration"
    )


def _exact(number: float) -> Fraction:
    """The number as it was written: 0.1 is 1/10."""
    return Fraction(str(number))
