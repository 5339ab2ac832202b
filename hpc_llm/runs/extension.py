"""A run that is to train further than it was frozen for: the same name, a longer train.duration.

What was trained stays as it is; only the end moves. A schedule that falls towards the end gives
another rate from there on, which is said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import OptimConfig
from hpc_llm.planning.schedule import learning_rate
from hpc_llm.runs.layout import RunLayout

if TYPE_CHECKING:
    from hpc_llm.planning.plan import RunPlan  # its imports are not the watchdog's

KEY = "train.duration"
_END_MATTERS = ("cosine", "linear", "wsd")


@dataclass(frozen=True)
class Extension:
    """The end of a frozen run and the one that it is to have, in optimizer steps."""

    before: int
    before_warmup: int
    now: int
    now_warmup: int
    optim: OptimConfig

    def told(self, step: int) -> str:
        """For people, where the run goes on from `step`: what happens to the learning rate."""
        end = f"{self.before:,} steps become {self.now:,}"
        if self.optim.schedule not in _END_MATTERS:
            return f"{end}; schedule {self.optim.schedule}: the learning rate goes on as it was"
        last = max(0, step - 1)
        rate = learning_rate(self.optim, last, self.before, self.before_warmup)
        new = learning_rate(self.optim, step, self.now, self.now_warmup)
        return (
            f"{end}; schedule {self.optim.schedule} ends later now: the learning rate was "
            f"{rate:.3g} at step {step:,} and goes on with {new:.3g}"
        )


def of(optim: OptimConfig, plan: RunPlan, layout: RunLayout) -> Extension | None:
    """How `plan` extends the run that is frozen in `layout`; None if it does not.

    InputError where it would end sooner: the steps of a run are never taken back.
    """
    frozen = _frozen(layout)
    if frozen is None or frozen[0] == plan.steps:
        return None
    before, before_warmup = frozen
    if plan.steps < before:
        raise InputError(
            f"{KEY}: {plan.steps:,} steps are fewer than the {before:,} that {layout.path} was "
            "submitted for; a run can be made longer, not shorter: choose another run.name"
        )
    return Extension(before, before_warmup, plan.steps, plan.warmup_steps, optim)


def planned_steps(layout: RunLayout) -> int | None:
    """The steps that the run is frozen for; None if it is not frozen."""
    frozen = _frozen(layout)
    return None if frozen is None else frozen[0]


def _frozen(layout: RunLayout) -> tuple[int, int] | None:
    try:
        plan = json.loads(layout.plan.read_text())
        return int(plan["steps"]), int(plan.get("warmup_steps", 0))
    except (OSError, ValueError, KeyError, TypeError):
        return None
