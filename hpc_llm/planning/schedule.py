"""Learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from hpc_llm.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int, warmup_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`.

    Linear warm-up over `warmup_steps`, then by `optim.schedule`: cosine and linear fall to
    lr·min_lr_ratio at the end; inverse_sqrt falls as sqrt(warmup/step), no lower than that; wsd
    holds lr and falls linearly in the last `decay_fraction` (MiniCPM, arXiv 2404.06395); constant
    stays.
    """
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    floor = optim.min_lr_ratio
    if optim.schedule == "cosine":
        factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif optim.schedule == "linear":
        factor = 1 - (1 - floor) * min(1.0, progress)
    elif optim.schedule == "inverse_sqrt":
        factor = max(floor, math.sqrt(max(1, warmup_steps) / (step + 1)))
    elif optim.schedule == "wsd":
        left = (steps - 1 - step) / max(1.0, steps * optim.decay_fraction)
        factor = floor + (1 - floor) * min(1.0, max(0.0, left))
    else:
        factor = 1.0
    return optim.lr * factor
