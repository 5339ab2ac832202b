"""What is left of each budget: how often a run may start again, by how its attempts ended. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hpc_llm.config.schema import RecoveryConfig, RunSection
from hpc_llm.recovery.causes import Cause

# What has to be saved after an end until it is forgiven: so much training, and this share of the
# run's steps. The steps alone would forgive a crash in every minute of a short run, the time alone
# a run that crawls.
REFILL_S = 24 * 3600.0
REFILL_SHARE = 0.01


@dataclass(frozen=True)
class Ended:
    """The end of one attempt.

    The steps are those of the newest checkpoint at its start and at its end; 0 for none.
    """

    cause: Cause
    start_step: int
    checkpoint_step: int
    gpu_hours: float
    node: str | None = None  # the node that the evidence points at
    node_excluded: bool = False  # whether that node was excluded afterwards
    # the next attempt uses half the micro-batch; halving ends at 1, so it needs no budget
    halved: bool = False
    trained_s: float = 0.0  # of training that its newest checkpoint holds


@dataclass(frozen=True)
class Budgets:
    """How often a run may start again unattended, per cause: see config.schema.RecoveryConfig.

    An end counts until the run has made progress since: see `counted`.
    """

    max_crashes: int
    max_no_progress: int
    max_gpu_hours: float | None
    max_hangs: int = 3
    max_node_failures: int = 10
    max_launch_failures: int = 5
    max_out_of_memory: int = 1
    max_divergences: int = 0  # 0 unless recovery.on_divergence=skip
    max_preemptions: int | None = None
    max_admin_cancels: int = 3
    steps: int = 0  # of the whole run; 0: not known

    @staticmethod
    def of(run: RunSection, recovery: RecoveryConfig, steps: int) -> Budgets:
        """The budgets of a run's configuration. steps: of the whole run."""
        budgets: dict[str, Any] = {"max_gpu_hours": run.max_gpu_hours, "steps": steps}
        for budget in fields(Budgets):
            if budget.name not in budgets:
                budgets[budget.name] = getattr(recovery, budget.name)
        if recovery.on_divergence != "skip":
            budgets["max_divergences"] = 0
        return Budgets(**budgets)


@dataclass(frozen=True)
class _Charge:
    """What an end is charged to: a budget, and the word for one and for several of its uses."""

    budget: str
    one: str
    many: str


_CRASHES = _Charge("max_crashes", "crash", "crashes")
_NODES = _Charge("max_node_failures", "node failure", "node failures")
_CHARGES = {
    Cause.CRASH: _CRASHES,
    Cause.KILLED: _CRASHES,
    Cause.HANG: _Charge("max_hangs", "hang", "hangs"),
    Cause.OUT_OF_MEMORY: _Charge("max_out_of_memory", "lack of memory", "times out of host memory"),
    Cause.GPU_OUT_OF_MEMORY: _Charge(
        "max_out_of_memory", "lack of GPU memory", "times out of GPU memory"
    ),
    Cause.DIVERGED: _Charge("max_divergences", "divergence", "divergences"),
    Cause.NODE_FAILURE: _NODES,
    Cause.ORPHANED: _NODES,
    Cause.LAUNCH_FAILED: _Charge("max_launch_failures", "launch failure", "launch failures"),
    Cause.PREEMPTED: _Charge("max_preemptions", "preemption", "preemptions"),
    Cause.ADMIN_CANCEL: _Charge(
        "max_admin_cancels", "cancellation by another user", "cancellations by another user"
    ),
}  # the others are limited only by progress and hours


def seconds_left(history: Sequence[Ended], budgets: Budgets, num_gpus: int) -> float:
    """How long an attempt on `num_gpus` may train after `history`, by run.max_gpu_hours."""
    if budgets.max_gpu_hours is None:
        return math.inf
    left = budgets.max_gpu_hours - _hours_spent(history)
    return max(0.0, left) * 3600 / num_gpus


def exhausted(history: Sequence[Ended], budgets: Budgets) -> str | None:
    """Which budget is used up, as a phrase; None while something is left of each."""
    if budgets.max_gpu_hours is not None and _hours_spent(history) >= budgets.max_gpu_hours:
        return hours_are_spent(budgets)
    stuck = _without_progress(history)
    if stuck > 0 and stuck >= budgets.max_no_progress:
        return (
            f"{stuck} attempts in a row left no newer checkpoint "
            f"(recovery.max_no_progress={budgets.max_no_progress})"
        )
    for spending in spent_of(history, budgets):
        if spending.limit is not None and spending.used > spending.limit:
            return f"{spending.used} {spending.many} (recovery.{spending.budget}={spending.limit})"
    return None


@dataclass(frozen=True)
class Spending:
    """How often a budget was used of late; limit: None where there is none."""

    budget: str  # its key in `recovery`
    many: str  # what was counted: `crashes`
    used: int
    limit: int | None


def spent_of(history: Sequence[Ended], budgets: Budgets) -> list[Spending]:
    """What the ends that still count have used, in the order in which they first happened."""
    used_up = Counter(_charge(end) for end in counted(history, budgets))
    spent = []
    for charge, used in used_up.items():
        if charge is not None:
            limit = getattr(budgets, charge.budget)
            spent.append(Spending(charge.budget, charge.many, used, limit))
    return spent


def counted(history: Sequence[Ended], budgets: Budgets) -> list[Ended]:
    """The ends of `history` that are not forgiven yet.

    One is forgiven when REFILL_S of training and REFILL_SHARE of the run's steps have been saved
    after it, whichever takes longer. Steps that are trained again, since their checkpoint was lost,
    are no new progress, nor is the time that they take.
    """
    enough_steps = max(1, math.ceil(budgets.steps * REFILL_SHARE))
    highest = 0
    saved_s = 0.0
    saved_steps = 0
    marks = []
    for end in history:
        known = max(highest, end.start_step)
        if end.checkpoint_step > known:
            new_steps = end.checkpoint_step - known
            saved_steps += new_steps
            saved_s += end.trained_s * new_steps / (end.checkpoint_step - end.start_step)
        highest = max(known, end.checkpoint_step)
        marks.append((saved_s, saved_steps))
    still = []
    for end, (until_s, until_steps) in zip(history, marks, strict=True):
        refilled = saved_s - until_s >= REFILL_S and saved_steps - until_steps >= enough_steps
        if not refilled:
            still.append(end)
    return still


def _hours_spent(history: Sequence[Ended]) -> float:
    return sum(end.gpu_hours for end in history)


def hours_are_spent(budgets: Budgets) -> str:
    return f"run.max_gpu_hours={budgets.max_gpu_hours or 0:g} spent"


def _charge(end: Ended) -> _Charge | None:
    """What an end is charged to, if anything.

    One bad node must not use up a run's retries: once it is excluded, its failures are charged to
    nodes.
    """
    if end.halved or end.cause not in _CHARGES:
        return None
    return _NODES if end.node_excluded else _CHARGES[end.cause]


def count_of_last(history: Sequence[Ended], budgets: Budgets) -> str:
    charge = _charge(history[-1])
    if charge is None:
        return str(history[-1].cause)
    used = sum(_charge(end) == charge for end in counted(history, budgets))
    limit = getattr(budgets, charge.budget)
    if limit is None:
        return f"{charge.one} {used}"
    return f"{charge.one} {used} of at most {limit}"


def _without_progress(history: Sequence[Ended]) -> int:
    """How many attempts in a row, at the end of `history`, left no newer checkpoint.

    Failures of a node that is now excluded, jobs that never began, what administrators cancelled,
    and micro-batches that are still being halved say nothing about the run: they have other limits.
    """
    count = 0
    for end in reversed(history):
        if end.checkpoint_step > end.start_step:
            break
        count += not _says_nothing_about_progress(end)
    return count


def _says_nothing_about_progress(end: Ended) -> bool:
    return (
        end.halved
        or end.cause in (Cause.LAUNCH_FAILED, Cause.ADMIN_CANCEL)
        or (end.node_excluded and _charge(end) is not None)
    )
