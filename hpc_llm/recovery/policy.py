"""Facts → action: what follows the end of an attempt. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_llm.recovery.causes import Cause

RETRIED = (Cause.CRASH, Cause.KILLED, Cause.HANG, Cause.OUT_OF_MEMORY, Cause.GPU_OUT_OF_MEMORY)


@dataclass(frozen=True)
class Ended:
    """One attempt's end. The steps are those of the newest checkpoint at its start and at its end; 0 for none."""

    cause: Cause
    start_step: int
    checkpoint_step: int
    gpu_hours: float


@dataclass(frozen=True)
class Budgets:
    """How often a run may start again unattended, per cause."""

    max_crashes: int
    max_no_progress: int
    max_gpu_hours: float | None


@dataclass(frozen=True)
class Decision:
    """restart: start the step again in the same place. Else the run stops; `why` says so."""

    restart: bool
    why: str


def decide(history: Sequence[Ended], budgets: Budgets) -> Decision:
    """What to do after the last of `history`, the attempts since the user's last submission, oldest first."""
    last = history[-1]
    if last.cause not in RETRIED:
        return Decision(False, f"{last.cause}: not a matter of trying again")
    if spent := exhausted(history, budgets):
        return Decision(False, spent)
    failures = sum(end.cause in RETRIED for end in history)
    return Decision(
        True, f"crash {failures} of at most {budgets.max_crashes}: starting again from step {last.checkpoint_step}"
    )


def exhausted(history: Sequence[Ended], budgets: Budgets) -> str | None:
    """Which budget is spent, as a phrase; None while there is something left of each."""
    spent = sum(end.gpu_hours for end in history)
    if budgets.max_gpu_hours is not None and spent >= budgets.max_gpu_hours:
        return f"run.max_gpu_hours={budgets.max_gpu_hours:g} spent"
    stuck = _without_progress(history)
    if stuck > 0 and stuck >= budgets.max_no_progress:
        return (
            f"{stuck} attempts in a row left no newer checkpoint (recovery.max_no_progress={budgets.max_no_progress})"
        )
    failures = sum(end.cause in RETRIED for end in history)
    if failures > budgets.max_crashes:
        return f"{failures} crashes (recovery.max_crashes={budgets.max_crashes})"
    return None


def _without_progress(history: Sequence[Ended]) -> int:
    """How many attempts at the end of `history` in a row left no newer checkpoint than they found."""
    progress = [end.checkpoint_step > end.start_step for end in history]
    return next((count for count, moved in enumerate(reversed(progress)) if moved), len(progress))
