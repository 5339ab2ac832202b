"""The ledger as the policy reads it: how the attempts since the user's last submission ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpc_llm.recovery.budgets import Ended
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import event_names
from hpc_llm.runs.entries import Attempt, Sending
from hpc_llm.runs.story import Story

_SENT_AGAIN = (
    event_names.RELEASED,
    event_names.RESUBMITTED,
    event_names.REQUEUED,
    event_names.EXPEDITED,
)
_OF_JOBS_THAT_NEVER_BEGAN = (Cause.LAUNCH_FAILED, Cause.ADMIN_CANCEL)


def attempts_since_submission(
    story: Story,
    newest_checkpoint: int,
    world_size: int | None = None,
    held_gpus: int = 0,
) -> list[Ended]:
    """How each attempt of the last submission ended, and each job that never began; oldest first.

    An attempt that says nothing of its end was lost with its node or killed by Slurm.
    newest_checkpoint: the newest valid step now, for the last attempt. With `world_size` the node
    of the rank that failed first is known, with `held_gpus`, spare nodes' among them, the hours of
    attempts that say nothing of their end.
    """
    since = story.since_submission()
    attempts = _by_number(since)
    ends: list[tuple[tuple[int, int, float], Ended]] = []
    for position, attempt in enumerate(attempts):
        step_after = newest_checkpoint
        if position + 1 < len(attempts):
            step_after = _start_step(attempts[position + 1])
        place = (attempt.number, 0, attempt.time)
        ends.append((place, _ended(since, attempt, step_after, world_size, held_gpus)))
    for sent in since.sendings:
        if sent.name in _SENT_AGAIN and sent.cause in _OF_JOBS_THAT_NEVER_BEGAN:
            after = _attempt_before(sent, attempts)
            ends.append(((after, 1, sent.time), _never_began(since, sent)))
    return [end for _, end in sorted(ends, key=lambda pair: pair[0])]


def _attempt_before(sent: Sending, attempts: Sequence[Attempt]) -> int:
    """The number of the newest attempt when the run was sent again, in which none began.

    Where the ledger does not tell, by the clocks of two machines.
    """
    if sent.after_attempt is not None:
        return sent.after_attempt
    return max((found.number for found in attempts if found.time < sent.time), default=0)


def node_of(rank: int | None, hosts: Sequence[str], world_size: int | None) -> str | None:
    """Where a rank ran, if that is known: ranks lie in blocks on the hosts of a step."""
    if rank is None or not world_size or not hosts:
        return None
    place = rank * len(hosts) // world_size
    if place >= len(hosts):
        return None
    return hosts[place]


def _by_number(story: Story) -> list[Attempt]:
    attempts = {attempt.number: attempt for attempt in story.attempts}
    return [attempts[number] for number in sorted(attempts)]


def _ended(
    since: Story, attempt: Attempt, step_after: int, world_size: int | None, held_gpus: int
) -> Ended:
    """step_after: the newest checkpoint that was found after the attempt."""
    node = _node_that_failed(attempt, world_size)
    node_excluded = _was_excluded(since, attempt.time, [node])
    start_step = _start_step(attempt)
    hours_seen = attempt.seen_s / 3600 * held_gpus
    lost = Ended(
        Cause.LOST,
        start_step,
        step_after,
        hours_seen,
        node,
        node_excluded,
        trained_s=attempt.trained_s(step_after),
    )
    end = attempt.end
    if end is None:
        return lost
    told: dict[str, Any] = {"halved": end.halved}
    if end.cause is not None:
        told["cause"] = Cause(end.cause)
    if end.checkpoint_step is not None:
        told["checkpoint_step"] = end.checkpoint_step
        told["trained_s"] = attempt.trained_s(end.checkpoint_step)
    if end.gpu_hours is not None:
        told["gpu_hours"] = end.gpu_hours
    return replace(lost, **told)


def _start_step(attempt: Attempt) -> int:
    """KeyError where it is not known: nothing can be decided about such a run."""
    if attempt.start_step is None:
        raise KeyError(f"checkpoint_step of attempt {attempt.number}")
    return attempt.start_step


def _node_that_failed(attempt: Attempt, world_size: int | None) -> str | None:
    """The node that the end names, or that of the rank that failed first.

    In a hang all ranks are aborted, and which of them ended first says nothing.
    """
    end = attempt.end
    if end is None:
        return None
    if end.node is not None or end.cause == Cause.HANG:
        return end.node
    return node_of(end.first_failed, attempt.nodes, world_size)


def _never_began(since: Story, sent: Sending) -> Ended:
    node = next(iter(sent.nodes), None)
    node_excluded = _was_excluded(since, sent.time, sent.nodes)
    return Ended(Cause(sent.cause), 0, 0, sent.gpu_hours, node, node_excluded)


def _was_excluded(story: Story, before: float, nodes: Sequence[str | None]) -> bool:
    """Whether any of `nodes` is excluded and was not readmitted since, as it stood at `before`."""
    readmitted_at = dict.fromkeys(nodes, 0.0)
    for change in story.node_changes:
        if not change.excluded and change.time < before:
            readmitted_at |= dict.fromkeys(change.nodes, change.time)
    for change in story.node_changes:
        for node in change.nodes:
            if change.excluded and node in nodes and change.time >= readmitted_at[node]:
                return True
    return False
