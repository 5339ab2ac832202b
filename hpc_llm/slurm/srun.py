"""What srun prints on its standard error about a step and its ranks. Standard library only."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

_REFUSED = re.compile(
    r"srun: error: (?:Unable to (?:create step|confirm allocation) for job"
    r"|Only allocated \d+ nodes? asked for|No step_layout given for pending step)"
)
# What no waiting changes: the step asks for more than the job holds, or srun for what it has not.
_FOR_GOOD = re.compile(
    "|".join(
        (
            "More processors requested than permitted",
            "Requested node configuration is not available",
            "Memory required by task is not available",
            r"Invalid generic resource|Invalid Trackable RESource|Invalid gres",
            r"Only allocated \d+ nodes? asked for",
            "Invalid (node name|feature|account|partition|qos|MPI type|argument|numeric value)",
            "(unrecognized|invalid|ambiguous|unknown) option|requires an argument",
            r"Failed to parse|unrecognized --|[Ii]nvalid [\w-]+ (argument|specification)",
            "cannot find .* plugin|MPI: Unable to load",
            "Could not open std(in|out|err) file",
            "mutually exclusive|may not be used together",
        )
    )
)
# A step that was cancelled, and a job: each tells on which node it heard of it.
_CANCELLED = re.compile(r"\*\*\* (STEP|JOB) \S+ ON \S+ CANCELLED AT \S+ DUE TO ([A-Z ]*[A-Z])")
_LINE = re.compile(r"^srun: (?:error: |fatal: )?(.+)$", re.MULTILINE)
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


def refused_for_good(text: str) -> bool:
    """Whether srun would say the same however often it is asked."""
    return _FOR_GOOD.search(text) is not None


def own_words(text: str) -> str:
    """The last two lines that srun says of itself, as one; empty if there is none."""
    lines = [line for line in _LINE.findall(text) if "--help" not in line]
    return "; ".join(dict.fromkeys(lines[-2:]))


def cancelled_for(text: str) -> str | None:
    """Why Slurm cancelled the step, in its words (`TIME LIMIT`, `NODE FAILURE`, …).

    None if it did not, or gave no reason. What ends the job ends its steps, and goes first.
    """
    reasons = dict(_CANCELLED.findall(text))
    if "JOB" in reasons:
        return f"JOB {reasons['JOB']}"
    return reasons.get("STEP")


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
