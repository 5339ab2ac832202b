"""The ledger as the policy reads it: how the attempts since the user's last submission ended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import Ended
from hpc_llm.runs.ledger import Event


def attempts_since_submission(events: Sequence[Event], newest_checkpoint: int) -> list[Ended]:
    """One Ended per attempt after the last `submitted`, oldest first.

    An attempt that says nothing of its end was lost with its node or killed by Slurm. newest_checkpoint:
    the newest valid step now, for the last attempt.
    """
    last = max((event.time for event in events if event.event == "submitted"), default=0.0)
    started = {event.facts["attempt"]: event for event in events if event.event == "started" and event.time >= last}
    ended = {event.facts["attempt"]: event.facts for event in events if event.event == "ended"}
    numbers = sorted(started)
    found = []
    for number, successor in zip_longest(numbers, numbers[1:]):
        facts = ended.get(number, {})
        after = newest_checkpoint if successor is None else started[successor].facts["checkpoint_step"]
        found.append(
            Ended(
                cause=Cause(facts.get("cause", Cause.LOST)),
                start_step=started[number].facts["checkpoint_step"],
                checkpoint_step=facts.get("checkpoint_step", after),
                gpu_hours=facts.get("gpu_hours", 0.0),
            )
        )
    return found
