"""What srun prints on its standard error about a step and its ranks. Standard library only."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

_REFUSED = re.compile(r"srun: error: Unable to (?:create step|confirm allocation) for job")
_EXIT = re.compile(r"srun: error: \S+: tasks? ([\d,\-\[\]]+): (.+)")
_NODE_LOST = re.compile(
    r"srun: error: (?:Node failure on|Task launch for \S+ failed on node) ([^\s:]+)"
)
_SIGNALS = {
    "Killed": signal.SIGKILL,
    "Terminated": signal.SIGTERM,
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "User defined signal 2": signal.SIGUSR2,
}


@dataclass(frozen=True)
class RankExit:
    """How a rank ended."""

    rank: int
    # negative for a signal; None: a cgroup's limit on memory ended it, and it could say nothing
    code: int | None


def refused(text: str) -> bool:
    """Whether Slurm did not start the step; it may a little later."""
    return _REFUSED.search(text) is not None


def lost_nodes(text: str) -> tuple[str, ...]:
    """Nodes that failed under the step, or on which it could not be launched."""
    return tuple(dict.fromkeys(_NODE_LOST.findall(text)))


def rank_exits(text: str) -> list[RankExit]:
    """In the order in which srun reported them.

    Reads lines such as `srun: error: n1: tasks 0-1: Exited with exit code 3` and `… task 1:
    Killed`.
    """
    exits = []
    for ranks, description in _EXIT.findall(text):
        code = _code(description)
        exits += [RankExit(rank, code) for rank in _expand(ranks)]
    return exits


def _code(description: str) -> int | None:
    if description.startswith("Out Of Memory"):
        return None
    number = re.match(r"Exited with exit code (\d+)", description)
    if number is not None:
        return int(number[1])
    for name, signal_number in _SIGNALS.items():
        if description.startswith(name):
            return -signal_number
    return -1


def _expand(ranks: str) -> list[int]:
    """`0-2,5` → [0, 1, 2, 5]."""
    numbers: list[int] = []
    for part in ranks.strip("[]").split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
