"""How often to save: Daly's interval, from a save's cost and the rate of interruptions."""

from __future__ import annotations

import math

# Node failures per 1000 node-days on the busier of two research clusters (arXiv 2410.21680, table
# 1: 6.50 and 2.34).
FAILURES_PER_1000_NODE_DAYS = 6.50
SAVE_OVERHEAD_S = 2.0  # barriers, fsync, manifest
BYTES_PER_S_AND_NODE = 1e9  # to a parallel file system; what is measured replaces it


def interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves that minimise the expected time to the end.

    save_s: how long training stops for one save; mtbf_s: mean time between interruptions. J. T.
    Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22
    (2006) 303–312, eq. 37: √(2δM) · (1 + ⅓·√(δ/2M) + ⅑·δ/2M) − δ for δ < 2M, else M. Never less
    than a save takes.
    """
    if save_s <= 0 or mtbf_s <= 0:
        raise ValueError("a save and the time between failures last longer than 0 s")
    if save_s >= 2 * mtbf_s:
        return max(mtbf_s, save_s)
    share = save_s / (2 * mtbf_s)
    return max(
        save_s, math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(share) / 3 + share / 9) - save_s
    )


def expected_save_s(checkpoint_bytes: int, num_nodes: int) -> float:
    """Before any save was measured."""
    return SAVE_OVERHEAD_S + checkpoint_bytes / (BYTES_PER_S_AND_NODE * num_nodes)


def mtbf_s(num_nodes: int, trained_s: float = 0.0, num_failures: int = 0) -> float:
    """Mean time between interruptions of a run on `num_nodes`.

    The field's rate, corrected by what was observed.

    The prior counts as one failure in the time in which one is expected, so a first failure moves
    the estimate and many failures outweigh the prior.
    """
    prior_s = 1000 * 86400 / (FAILURES_PER_1000_NODE_DAYS * num_nodes)
    return (prior_s + trained_s) / (1 + num_failures)
