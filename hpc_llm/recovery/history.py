"""The ledger as the policy reads it: how the attempts since the user's last submission ended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import Ended
from hpc_llm.runs.ledger import Event

_SENT_ON = ("released", "resubmitted", "requeued", "expedited")
READMITTED = "readmitted"  # the ledger's word for nodes that are left out no longer


def attempts_since_submission(
    events: Sequence[Event],
    newest_checkpoint: int,
    world_size: int | None = None,
    held_gpus: int = 0,
) -> list[Ended]:
    """One Ended per attempt of the last submission, and one per job of it that never began, oldest
    first.

    An attempt that says nothing of its end was lost with its node or killed by Slurm.
    newest_checkpoint: the newest valid step now, for the last attempt. With `world_size` the node
    of the rank that failed first is known, with `held_gpus`, spare nodes' among them, the hours of
    attempts that say nothing of their end.
    """
    since = since_submission(events)
    started = {event.facts["attempt"]: event for event in since if event.event == "started"}
    ended = {event.facts["attempt"]: event.facts for event in since if event.event == "ended"}
    found: list[tuple[float, Ended]] = []
    for number, successor in zip_longest(sorted(started), sorted(started)[1:]):
        facts = ended.get(number, {})
        after = (
            newest_checkpoint if successor is None else started[successor].facts["checkpoint_step"]
        )
        hosts = started[number].facts.get("nodes") or []
        node = facts.get("node")
        if (
            node is None and facts.get("cause") != Cause.HANG
        ):  # there all are aborted, and who is first says nothing
            node = node_of(facts.get("first_failed"), hosts, world_size)
        end = Ended(
            cause=Cause(facts.get("cause", Cause.LOST)),
            start_step=started[number].facts["checkpoint_step"],
            checkpoint_step=facts.get("checkpoint_step", after),
            gpu_hours=facts.get("gpu_hours", _hours_seen(since, number, held_gpus)),
            node=node,
            node_excluded=_left_out(since, started[number].time, [node]),
            halved=facts.get("halved", False),
        )
        found.append((started[number].time, end))
    found += [
        (event.time, _never_began(since, event)) for event in since if _is_launch_failure(event)
    ]
    return [end for _, end in sorted(found, key=lambda pair: pair[0])]


def since_submission(events: Sequence[Event]) -> list[Event]:
    """What happened after the last `submitted`. Of attempts their numbers tell, where they can:
    clocks differ.
    """
    submitted = max(
        (event for event in events if event.event == "submitted"),
        key=lambda event: event.time,
        default=None,
    )
    if submitted is None:
        return list(events)
    first = _first_attempt(submitted, events)

    def counts(event: Event) -> bool:
        number = event.facts.get("attempt") if event.event in ("started", "ended") else None
        return event.time >= submitted.time if first is None or number is None else number >= first

    return [event for event in events if counts(event)]


def _first_attempt(submitted: Event, events: Sequence[Event]) -> int | None:
    """The number of a submission's first attempt, where it says so or an attempt names its job."""
    if "after_attempt" in submitted.facts:
        return int(submitted.facts["after_attempt"]) + 1
    started = [event.facts for event in events if event.event == "started"]
    return min(
        (each["attempt"] for each in started if each.get("job") == submitted.facts.get("job", "")),
        default=None,
    )


def _is_launch_failure(event: Event) -> bool:
    return event.event in _SENT_ON and event.facts.get("cause") == Cause.LAUNCH_FAILED


def _never_began(events: Sequence[Event], event: Event) -> Ended:
    nodes = event.facts.get("nodes") or []
    hours = event.facts.get("gpu_hours", 0.0)
    return Ended(
        Cause.LAUNCH_FAILED,
        0,
        0,
        hours,
        nodes[0] if nodes else None,
        _left_out(events, event.time, nodes),
    )


def _left_out(events: Sequence[Event], since: float, nodes: Sequence[str | None]) -> bool:
    """Whether any of `nodes` was excluded, before or after `since`, and not given back before that
    time.
    """
    given_back = dict.fromkeys(nodes, 0.0)
    for event in events:
        if event.event == READMITTED and event.time < since:
            given_back |= dict.fromkeys(event.facts["nodes"], event.time)
    return any(
        event.event == "excluded"
        and any(node in nodes and event.time >= given_back[node] for node in event.facts["nodes"])
        for event in events
    )


def node_of(rank: int | None, hosts: Sequence[str], world_size: int | None) -> str | None:
    """Where a rank ran: ranks lie in blocks on the hosts of a step. None where that is not
    known.
    """
    if rank is None or not world_size or not hosts:
        return None
    place = rank * len(hosts) // world_size
    return hosts[place] if place < len(hosts) else None


def _hours_seen(events: Sequence[Event], attempt: int, held_gpus: int) -> float:
    """GPU-hours from an attempt's first to its last word: what it spent at least."""
    times = [event.time for event in events if event.writer.endswith(f"-{attempt:04d}")]
    return (max(times) - min(times)) / 3600 * held_gpus if times else 0.0
