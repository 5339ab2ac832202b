"""A power law through a ladder of sizes, its uncertainty, and its prediction for the next size.

L(x) = c + a·x^−b with x parameters or training FLOPs (arXiv 2203.15556, section 3.3, for one of its
two terms). With three sizes c is 0: three points would determine three numbers exactly and leave no
estimate of uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps.significance import t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_SIZES = 3
CONFIDENCE = 0.95
_EXPONENTS = (1e-3, 3.0)  # published ones lie between 0.05 and 0.5
_LOOKS = 41
_ROUNDS = 7  # each round looks 20 times closer


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScalingFit:
    """L(x) = c + a·x^−b.

    Confidence by the delta method with Student's t over sizes; seeds' means are the points.
    """

    sizes: list[float]
    losses: list[float]  # mean over seeds, one a size
    a: Interval
    b: Interval
    c: Interval | None  # None: held at 0
    residual: float  # largest relative error at the sizes that were fitted
    next_size: float
    next_loss: Interval


def fit(
    sizes: Sequence[float], losses: Sequence[float], next_size: float | None = None
) -> ScalingFit:
    """Least squares of relative errors.

    next_size: by default one step further by the ratio of the last two. InputError for fewer than
    three sizes, or if the loss does not fall with the size.
    """
    num_sizes = len(set(sizes))
    if num_sizes < FEWEST_SIZES:
        raise InputError(f"a scaling fit needs {FEWEST_SIZES} sizes, these are {num_sizes}")
    x = []
    y = []
    for size, loss in sorted(zip(sizes, losses, strict=True)):
        x.append(size)
        y.append(loss)
    # Sizes around 1, so that a and b can be told apart.
    unit = math.exp(sum(map(math.log, x)) / len(x))
    scaled = [size / unit for size in x]
    b, a, c = _best(scaled, y, offset=len(x) > FEWEST_SIZES)
    if a <= 0 or b <= _EXPONENTS[0] * 1.01:
        raise InputError(
            "the loss does not fall with the size as a power law does: no fit, and no prediction"
        )
    law = _Law(scaled, y, a, b, c)
    target = next_size if next_size is not None else x[-1] ** 2 / x[-2]
    return ScalingFit(
        sizes=x,
        losses=y,
        a=law.of(lambda a, b, c: a * unit**b),
        b=law.of(lambda a, b, c: b),
        c=law.of(lambda a, b, c: c) if c > 0 else None,
        residual=max(map(abs, law.errors())),
        next_size=target,
        next_loss=law.of(lambda a, b, c: _at(target / unit, a, b, c), one_more_run=True),
    )


@dataclass(frozen=True)
class _Law:
    """A fitted law at its points, for what the delta method says of functions of it."""

    x: list[float]
    y: list[float]
    a: float
    b: float
    c: float

    def errors(self) -> list[float]:
        """Relative errors at the points."""
        pairs = zip(self.x, self.y, strict=True)
        return [_at(x, self.a, self.b, self.c) / y - 1 for x, y in pairs]

    def of(
        self, function: Callable[[float, float, float], float], one_more_run: bool = False
    ) -> Interval:
        """`function` of (a, b, c) and its interval.

        one_more_run: with the error of a single new point.
        """
        import numpy

        free = 3 if self.c > 0 else 2
        rows = []
        for x, y in zip(self.x, self.y, strict=True):
            rows.append(self._gradient(lambda a, b, c, x=x: _at(x, a, b, c))[:free] / y)  # type: ignore[misc]
        jacobian = numpy.array(rows)
        freedom = len(self.x) - free
        variance = sum(error**2 for error in self.errors()) / freedom
        gradient = self._gradient(function)[:free]
        covariance = variance * numpy.linalg.pinv(jacobian.T @ jacobian)
        value = function(self.a, self.b, self.c)
        own = variance * value**2 if one_more_run else 0.0
        half = t_quantile(CONFIDENCE, freedom) * math.sqrt(
            max(0.0, float(gradient @ covariance @ gradient)) + own
        )
        return Interval(value, value - half, value + half)

    def _gradient(self, function: Callable[[float, float, float], float]) -> NDArray:
        import numpy

        here = [self.a, self.b, self.c]
        gradient = []
        for place, value in enumerate(here):
            step = 1e-6 * max(abs(value), 1e-3)
            above = list(here)
            below = list(here)
            above[place] = value + step
            below[place] = value - step
            gradient.append((function(*above) - function(*below)) / (2 * step))
        return numpy.array(gradient)


def _at(x: float, a: float, b: float, c: float) -> float:
    return float(c + a * x**-b)


def _best(x: Sequence[float], y: Sequence[float], *, offset: bool) -> tuple[float, float, float]:
    """b, a and c ≥ 0 of the least squares.

    For a given b the others are linear, so that b alone is searched for.
    """
    low, high = map(math.log, _EXPONENTS)
    for _ in range(_ROUNDS):
        step = (high - low) / (_LOOKS - 1)
        looks = [low + step * place for place in range(_LOOKS)]
        middle = min(looks, key=lambda log_b: _linear(x, y, math.exp(log_b), offset)[0])
        low = max(looks[0], middle - step)
        high = min(looks[-1], middle + step)
    _, a, c = _linear(x, y, math.exp(middle), offset)
    return math.exp(middle), a, c


def _linear(
    x: Sequence[float], y: Sequence[float], b: float, offset: bool
) -> tuple[float, float, float]:
    """Sum of squared relative errors of the best a and c for this b, and these two.

    c is never negative.
    """
    import numpy

    target = numpy.ones(len(y))
    powers = numpy.array(x) ** -b / numpy.array(y)
    ones = 1 / numpy.array(y)
    a = float(powers @ target / (powers @ powers))
    c = 0.0
    if offset:
        (with_a, with_c), *_ = numpy.linalg.lstsq(
            numpy.stack([powers, ones], axis=1), target, rcond=None
        )
        if with_c > 0:
            a = float(with_a)
            c = float(with_c)
    errors = a * powers + c * ones - target
    return float(errors @ errors), a, c
