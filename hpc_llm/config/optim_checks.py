"""Rules on the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hpc_llm.config.building import default_value
from hpc_llm.config.optimizers import OPTIONAL_KEYS, ZERO_STAGES, Optimizer, optimizer, using
from hpc_llm.config.schema import OptimConfig, RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with them that can be seen from the configuration alone."""
    optim = config.optim
    row = optimizer(optim.name)
    yield from _stage(config, row)
    yield from _schedule(optim)
    yield from _keys(optim, row)


def _stage(config: RunConfig, row: Optimizer) -> Iterator[str]:
    """DeepSpeed offloads from stage 1 on, and Muon needs whole matrices."""
    stage = config.train.zero_stage
    if stage not in ZERO_STAGES or stage in row.zero_stages:
        return
    if row.offloaded:
        yield f"optim={row.name}: offloading needs train.zero_stage=1, 2 or 3"
    else:
        allowed = " or ".join(map(str, row.zero_stages))
        yield f"optim={row.name}: works with train.zero_stage={allowed}, not {stage}"


def _schedule(optim: OptimConfig) -> Iterator[str]:
    decay = optim.decay_fraction
    if optim.schedule != "wsd" and decay != default_value(OptimConfig, "decay_fraction"):
        yield f"optim.decay_fraction={decay}: has an effect with optim.schedule=wsd alone"
    least = optim.min_lr_ratio
    if optim.schedule == "constant" and least != default_value(OptimConfig, "min_lr_ratio"):
        yield f"optim.min_lr_ratio={least}: has no effect with optim.schedule=constant"


def _keys(optim: OptimConfig, row: Optimizer) -> Iterator[str]:
    """Keys that this optimizer does not use, and those that it cannot do without."""
    for key in OPTIONAL_KEYS:
        value = getattr(optim, key)
        default = default_value(OptimConfig, key)
        if key not in row.keys and value != default:
            yield _unused(key, value, row)
        if key in row.keys and value is None:
            yield f"optim.{key}=null: a number is expected with optim={row.name}"
    clips = optim.grad_clip != 0 and math.isfinite(optim.grad_clip)
    if "grad_clip" not in row.keys and clips:
        yield (
            f"optim.grad_clip={optim.grad_clip:g}: DeepSpeed would clip Muon's updates, whose "
            "size is fixed, instead of gradients; use optim.grad_clip=0 with optim=muon"
        )


def _unused(key: str, value: object, row: Optimizer) -> str:
    if key == "eps":
        return f"optim.eps={value}: has no effect with optim={row.name}, which divides by nothing"
    if isinstance(value, float):
        value = f"{value:g}"
    owners = " or ".join(using(key))
    return f"optim.{key}={value}: has an effect with optim={owners} alone"
