"""One run's directory → the numbers that runs are compared by.

Slurm is not asked, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.building import completed, flat
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.recovery.accounting import gpu_hours
from hpc_llm.runs import frozen_sections
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import read_story
from hpc_llm.trackers import jsonl

# Of the steps: their mean is the final loss, since one batch's own loss is mostly noise.
_LAST_FRACTION = 0.02


@dataclass(frozen=True)
class Result:
    """What a run was and what came of it.

    Losses are nats per target token; None: not measured (yet).
    """

    name: str
    config: dict[str, Any]  # dotted key → value; keys newer than the run have their defaults
    parameters: int
    train_flops: float  # of the whole plan
    steps: int  # of the plan
    step: int  # the newest that is in metrics.jsonl
    complete: bool
    final_loss: float | None  # training: mean of the last 2 % of the steps
    heldout_loss: float | None  # of the last evaluation
    best_loss: float | None  # the lowest held-out loss of all evaluations
    tokens_per_second: float | None  # median over steps
    gpu_hours: float  # allocated, all attempts, without the queue

    @property
    def seed(self) -> Any:
        return self.config["run.seed"]


def read(layout: RunLayout) -> Result:
    """InputError where the directory is no run, or a damaged one."""
    try:
        config = json.loads(layout.config.read_text())
        plan = json.loads(layout.plan.read_text())
        keys = flat(completed(RunConfig, config))
        story = read_story(layout.ledger)
        losses = []
        heldout = []
        speeds = []
        step = 0
        for row in jsonl.read(layout.metrics):
            if "heldout_loss" in row and math.isfinite(row["heldout_loss"]):
                heldout.append(row["heldout_loss"])
            if "loss" not in row:
                continue
            losses.append(float(row["loss"]))
            step = int(row["step"])
            if "tokens_per_second" in row:
                speeds.append(row["tokens_per_second"])
        return Result(
            name=layout.name,
            config=keys,
            parameters=plan["parameters"],
            train_flops=plan["flops_per_token"] * plan["tokens"],
            steps=plan["steps"],
            step=step,
            complete=story.has_reached(int(plan.get("steps", 0))),
            final_loss=final_loss(losses, plan["steps"]),
            heldout_loss=heldout[-1] if heldout else None,
            best_loss=min(heldout, default=None),
            tokens_per_second=statistics.median(speeds) if speeds else None,
            gpu_hours=gpu_hours(story, frozen_sections.of(config).cluster.held_gpus),
        )
    except FileNotFoundError as error:
        raise InputError(f"{layout.path}: not a run directory (no {error.filename})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{layout.path}: a run that cannot be read ({error!r})") from None


def final_loss(losses: Sequence[float], steps: int) -> float | None:
    """Mean of the losses of the last 2 % of `steps`, at least of one.

    None where there is none, or one of them is not finite.
    """
    last = losses[-max(1, round(steps * _LAST_FRACTION)) :]
    if not last or not all(map(math.isfinite, last)):
        return None
    return statistics.fmean(last)
