"""Facts → action: what to do after an attempt has ended. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_llm.recovery.budgets import Budgets, Ended, count_of_last, exhausted, hours_are_spent
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import event_names


class Action(str, enum.Enum):
    """What is done about a run; its value is the ledger's word for it."""

    NOTHING = "nothing"
    RESTART_STEP = event_names.RESTARTED  # in the same allocation
    RESTART_WITHOUT_NODE = event_names.RESTARTED_WITHOUT  # … on its other nodes
    REQUEUE = event_names.REQUEUED
    REQUEUE_EXCLUDING = event_names.REQUEUED_EXCLUDING
    RESUBMIT = event_names.RESUBMITTED
    RELEASE = event_names.RELEASED  # a job that Slurm holds
    # StartTime=now+3 skips the wait after a requeue (121 s); plain `now` loses jobs
    EXPEDITE = event_names.EXPEDITED
    STOP = event_names.GIVEN_UP
    FREE = event_names.FREED  # end the job of a run that successive halving has stopped
    WITHDRAW = event_names.WITHDRAWN  # a queued job that has nothing left to do
    MARK_CANCELLED = event_names.CANCELLED


AGAIN = frozenset(
    {
        Action.RESTART_STEP,
        Action.RESTART_WITHOUT_NODE,
        Action.REQUEUE,
        Action.REQUEUE_EXCLUDING,
        Action.RESUBMIT,
        Action.RELEASE,
        Action.EXPEDITE,
    }
)  # after any of these the run continues

IN_PLACE = frozenset(
    {
        Cause.CRASH,
        Cause.KILLED,
        Cause.HANG,
        Cause.OUT_OF_MEMORY,
        Cause.GPU_OUT_OF_MEMORY,
        Cause.DIVERGED,
        Cause.STEP_TIME_LIMIT,
    }
)  # the allocation is still there
ELSEWHERE = frozenset(
    {
        Cause.TIME_LIMIT,
        Cause.PREEMPTED,
        Cause.NODE_FAILURE,
        Cause.LAUNCH_FAILED,
        Cause.ORPHANED,
        Cause.ADMIN_CANCEL,
        Cause.LOST,
        Cause.UNKNOWN,
    }
)  # the allocation is gone, or going
FINAL = frozenset(
    {
        Cause.COMPLETED,
        Cause.STOPPED,
        Cause.CANCELLED,
        Cause.HOURS_SPENT,
        Cause.CHECKPOINT_UNREADABLE,
        Cause.STORAGE_FULL,
        Cause.CONFIG_ERROR,
        Cause.FENCED,
    }
)  # no restart would help; a cause that stands in none of the three fails a test


@dataclass(frozen=True)
class Cluster:
    """What is known about the machine when an attempt has ended."""

    bad_nodes: frozenset[str] = frozenset()  # to be excluded, by the evidence of all runs
    # whether this allocation has enough nodes without the bad ones and the one that failed
    enough_left: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do and why; `nodes` are excluded, `cause` is what it responds to."""

    action: Action
    why: str
    nodes: tuple[str, ...] = ()
    cause: Cause | None = None
    hold: bool = False  # submitted again, but held: a person releases it

    def elsewhere(self) -> Decision:
        """The same decision for an allocation that is about to end.

        Restarting the step in it would be useless.
        """
        there = {
            Action.RESTART_STEP: Action.REQUEUE,
            Action.RESTART_WITHOUT_NODE: Action.REQUEUE_EXCLUDING,
        }
        return replace(self, action=there.get(self.action, self.action))

    @property
    def restart(self) -> bool:
        """Whether the step restarts in the same allocation."""
        return self.action in (Action.RESTART_STEP, Action.RESTART_WITHOUT_NODE)


def decide_inside(
    history: Sequence[Ended], budgets: Budgets, cluster: Cluster | None = None
) -> Decision:
    """What to do after the last of `history`.

    history: the attempts since the user's last submission, oldest first.
    """
    last = history[-1]
    cluster = cluster or Cluster()
    if last.cause is Cause.HOURS_SPENT:
        return Decision(Action.STOP, hours_are_spent(budgets), cause=last.cause)
    if last.cause in FINAL or (last.cause is Cause.DIVERGED and budgets.max_divergences == 0):
        return Decision(Action.STOP, f"{last.cause}: a restart would not help", cause=last.cause)
    if spent := exhausted(history, budgets):
        return Decision(Action.STOP, f"{last.cause}: {spent}", cause=last.cause)
    died_here = last.cause is Cause.NODE_FAILURE and cluster.enough_left
    bad: tuple[str, ...] = ()
    if last.node is not None and (last.node in cluster.bad_nodes or died_here):
        bad = (last.node,)
    why = f"{count_of_last(history, budgets)}: starting again from step {last.checkpoint_step}"
    if bad and cluster.enough_left and (died_here or last.cause in IN_PLACE):
        return Decision(Action.RESTART_WITHOUT_NODE, f"{why} without {last.node}", bad, last.cause)
    if bad or last.cause in ELSEWHERE:
        requeue = Action.REQUEUE_EXCLUDING if bad else Action.REQUEUE
        return Decision(requeue, why, bad, last.cause)
    return Decision(Action.RESTART_STEP, why, bad, last.cause)
