"""Whether two means differ by more than the seeds explain: Welch's t-test, standard library only.

Assumed: each run's loss is an independent draw (another seed), normally distributed within its
combination; the combinations may have different variances. The same seeds on both sides are not
paired, which costs some power and assumes less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05
FEWEST_SEEDS = 2  # a variance needs two; three are the fewest that say much
_TERMS = 400


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of equal means (B. L. Welch, Biometrika 34, 1947).

    None if a side has fewer than two values. Degrees of freedom by Welch and Satterthwaite.
    Without any variance p is 1 where the means agree, else 0.
    """
    if min(len(first), len(second)) < FEWEST_SEEDS:
        return None
    first_error = statistics.variance(first) / len(first)
    second_error = statistics.variance(second) / len(second)
    error = first_error + second_error
    gap = statistics.fmean(first) - statistics.fmean(second)
    if error == 0:
        return float(gap == 0)
    first_part = (first_error / error) ** 2 / (len(first) - 1)
    second_part = (second_error / error) ** 2 / (len(second) - 1)
    freedom = 1 / (first_part + second_part)
    return two_sided_p(gap / math.sqrt(error), freedom)


def holm(probabilities: Sequence[float]) -> list[float]:
    """p values corrected for being several, in the same order.

    S. Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    corrected = [0.0] * len(order)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, probabilities[place] * (len(order) - rank)))
        corrected[place] = highest
    return corrected


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| ≥ |t|) of Student's t with `freedom` degrees of freedom.

    DLMF 8.17.22, and Abramowitz & Stegun 26.7.1.
    """
    return _incomplete_beta(
        freedom / (freedom + t * t), t * t / (freedom + t * t), freedom / 2, 0.5
    )


def t_quantile(confidence: float, freedom: float) -> float:
    """The t that |T| stays below with probability `confidence`."""
    low = 0.0
    high = 1.0
    while two_sided_p(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if two_sided_p(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b), with rest = 1 − x given on its own.

    Near x = 1 the difference would have lost its digits.
    """
    if x <= 0 or rest <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(rest, x, b, a)
    log_front = (
        a * math.log(x) + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    )
    fraction = 1.0
    for m in range(_TERMS, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd / (1 + even / fraction)
    return math.exp(log_front) / (a * fraction)
